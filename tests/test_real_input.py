"""Real photographs from the public set go the whole way: import, refresh, verify."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.progress import Silent

from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.finishing.marking import read_marking
from adgen.on_ray.refresh.job import refresh
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.shop.inputs.pad1m import import_pad1m

CLOTHING = Path(__file__).parents[2] / "shared/data/clothing/pad1m.json"


@pytest.mark.slow
@pytest.mark.skipif(not CLOTHING.exists(), reason="the clothing set is not beside this checkout")
def test_the_clothing_set_is_imported_refreshed_and_verified(no_ray, model, tmp_path):
    imported = import_pad1m(CLOTHING, tmp_path / "inputs")
    made = RefreshSettings.model_validate(
        {
            "inputs": str(tmp_path / "inputs"),
            "store": str(tmp_path / "store"),
            "campaign": "clothing",
            "model": str(model),
            "plan": {"pairs_per_shard": 4, "limit": 6},
            "publish_partial": True,
            "sampling": {"max_title_tokens": 8},
            "engine": {"deepspeed": False},
            "finish": {"width": 256, "height": 256, "gates": {"title_empty": "warn"}},
        }
    )
    summary = refresh(made, Silent())
    assert (summary.published, summary.state) == (True, "PARTIAL")
    assert (summary.pairs, summary.generated, summary.failed, summary.rejected) == (6, 6, 0, 0)
    checked = verify(open_storage(made.store), "clothing")
    assert (checked.rows, checked.ok, checked.missing, checked.mismatched) == (6, 6, 0, 0)

    products = {row["product_id"]: row for row in pq.read_table(tmp_path / "inputs" / "products.parquet").to_pylist()}
    assert len(products) == imported.products
    for row in open_published(open_storage(made.store), "clothing").rows():
        picture = Image.open(tmp_path / "store" / row["uri"])
        assert picture.size == (256, 256)
        assert read_marking(picture).digital_source_type == "compositeWithTrainedAlgorithmicMedia"
        assert products[row["product_id"]]["title"]
        assert row["scores"]
