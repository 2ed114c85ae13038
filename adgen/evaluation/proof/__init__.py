"""The proof that creatives follow their users: what is measured, the goals, the table and the sheet. It knows arrays and
texts; where they come from is `adgen.on_ray.proof.job`'s part."""
