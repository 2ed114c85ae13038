"""The sheet's pictures, from a proof's creatives and the users' clicks."""

from pathlib import Path

from PIL import Image

from adgen.errors import PairError
from adgen.evaluation.proof.sheet import CLICKS, CREATIVE_SIDE, Column, draw_sheet, save_sheet
from adgen.on_ray.proof.creatives import SHEET, Made, paste, read_shop_picture
from adgen.on_ray.proof.pairs import ProofPairs


def write_sheet(path: Path, pairs: ProofPairs, made: Made) -> None:
    """A row a product, a column a user; above each column what that user clicked last."""
    rows, pictures = made.sheet_rows, made.painted(SHEET)
    users = list(dict.fromkeys(row["user_id"] for row in rows))
    creatives = [paste(made.maker, row, picture, CREATIVE_SIDE) for row, picture in zip(rows, pictures, strict=True)]
    columns = [
        Column(last_clicked(pairs, user), [c for row, c in zip(rows, creatives, strict=True) if row["user_id"] == user])
        for user in users
    ]
    products = [made.maker.product(rows[start]) for start in range(0, len(rows), len(users))]
    save_sheet(draw_sheet(products, columns), path)


def last_clicked(pairs: ProofPairs, user: str) -> list[Image.Image]:
    """The pictures of a user's newest clicks that can be read, newest last."""
    images: dict[str, str | None] = {}
    for batch in pairs.inputs["products"].batches(["product_id", "image"]):
        images |= dict(zip(batch["product_id"].to_pylist(), batch["image"].to_pylist(), strict=True))
    clicks = next(
        (
            row["clicks"] or []
            for batch in pairs.inputs["histories"].batches()
            for row in batch.to_pylist()
            if row["user_id"] == user
        ),
        [],  # a reference needs no history
    )
    pictures = []
    for product in dict.fromkeys(click["product_id"] for click in reversed(clicks)):
        try:
            pictures.append(read_shop_picture(pairs, images[product]))
        except (PairError, KeyError, TypeError):
            continue
        if len(pictures) == CLICKS:
            break
    return pictures[::-1]
