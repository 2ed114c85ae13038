"""Variants of a pair: their seeds, fingerprints and ranks, and what a plan carries when there are more of them, or fewer."""

from adgen.records import variant_seed


def test_the_first_attempt_at_variant_0_has_the_pairs_own_seed_and_no_other_attempt_shares_one():
    seeds = [variant_seed(pair, variant, attempt) for pair in (3, 4) for variant in range(12) for attempt in range(9)]
    assert (seeds[0], seeds[12 * 9]) == (3, 4)
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # For ever: published creatives are made again from it.
    assert variant_seed(variant_seed(3, 1), 0, 2) == variant_seed(3, 1, 2) == 154365812818143369
