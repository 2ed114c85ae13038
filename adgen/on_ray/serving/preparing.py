"""Around an engine, by the refresh's own steps: a request is planned and looked up, a result finished and committed.

It works in a process of its own: in the engine's, Python would stop the engine at each of its thousand small steps to let these
threads go on (measured: four threads that plan make an engine ten times as slow on a CPU).
"""

import base64
import binascii
import hashlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.publish import read_pointer
from adgen.creatives.served import commit_served, forget_served, read_served
from adgen.creatives.tombstones import is_forgotten
from adgen.errors import RunError
from adgen.images import use_limits
from adgen.on_ray.refresh.catalog_encoders import HistoryEncoder, TitleTokenizer
from adgen.on_ray.refresh.commit import FinishAndCommit
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import Generate, made_by
from adgen.on_ray.refresh.look_up import LookUp
from adgen.on_ray.refresh.planning import Prepared, cache_folder, plan_rules, prepare
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeRequest, ServiceError, not_found
from adgen.on_ray.serving.histories import HistoryFiles
from adgen.on_ray.serving.scratch import ScratchFolder
from adgen.on_ray.serving.settings import ServeSettings
from adgen.records import LINEAGE, public_fingerprint, variant_seed
from adgen.shop.catalog.catalog import Catalog, CatalogPlace, build_catalog, last_catalog
from adgen.shop.catalog.rows import WORK, Encoders, encode_products
from adgen.shop.inputs.locations import stat
from adgen.shop.plan.buckets import PUBLISHED, Bucket, user_rank
from adgen.shop.plan.rows import PlanRules, plan_bucket, rows_to_make

RANK = pa.field("user_rank", pa.uint64())


@dataclass(frozen=True)
class Shop:
    """Inputs as the newest refresh saw them."""

    catalog: Catalog
    histories: HistoryFiles
    rules: PlanRules
    pointer: str | None
    """The run that was published then."""


class Preparation:
    """Plans requests and finishes results. Threads may share it; no Ray is called here."""

    def __init__(self, settings: ServeSettings):
        """RunError (of any kind): store, inputs, keys or model cannot be used."""
        self.settings = settings
        refresh = settings.refresh()
        use_limits(refresh.pictures)
        self._folder = ScratchFolder()
        self._shops = 0
        self.prepared: Prepared = prepare(refresh)
        self.campaign, self.storage = refresh.campaign, self.prepared.storage
        self.shop = self._open_shop(self.prepared)
        items = self.prepared.model.config.history_items
        digests = self.prepared.model_digest, self.prepared.settings_digest
        untrained = bool(self.prepared.model.facts.having("untrained"))
        self.context = Context(self.prepared.settings, layout.new_run_id(), *digests, None, items, untrained)
        self.generate, self.finishing = Generate(self.context), FinishAndCommit(self.context)

    def model_digest(self) -> str:
        """Of the model whose creatives are planned."""
        return self.prepared.model_digest

    def follow(self) -> str | None:
        """Read the inputs again where another run was published since; that run, None where there is none."""
        pointer, _ = read_pointer(self.storage, self.campaign)
        if (pointer.run_id if pointer else None) == self.shop.pointer:
            return None
        prepared = prepare(self.settings.refresh())
        if prepared.model_digest != self.prepared.model_digest:
            raise RunError(f"{self.settings.model}: is another model than this engine's; start the service again")
        self.prepared, self.shop = prepared, self._open_shop(prepared)
        return self.shop.pointer

    def close(self) -> None:
        """Remove what lies on this machine's disk."""
        self._folder.close()

    # -- plan ----------------------------------------------------------------------------------------------------------------

    def planned(self, asked: CreativeRequest) -> list[Row]:
        """The refresh's plan of the pair: of each creative the row that was served before, or one that is looked up, with the
        engine's request under "request". ServiceError."""
        with tempfile.TemporaryDirectory(prefix="adgen-request-") as folder:
            return self._plan(asked, Path(folder))

    def _plan(self, asked: CreativeRequest, folder: Path) -> list[Row]:
        shop = self.shop
        user = asked.user_id or shop.histories.user_id(asked.user_key)
        if user is None:
            raise not_found()
        catalog = shop.catalog if asked.product is None else _WithProduct(shop.catalog, asked, self.settings, folder)
        rank = pa.array([user_rank(user)], pa.uint64())
        names = ("user_id", "product_id", "locale", "channel")
        pair = {"user_id": user} | {name: getattr(asked, name) for name in names[1:]}
        pairs = pa.table({name: pa.array([pair[name]], pa.string()) for name in names}).append_column(RANK, rank)
        bucket = Bucket(pairs, self._history(asked, user), pa.schema([*PUBLISHED, RANK]).empty_table())
        key = shop.rules.campaign_key
        erased = lambda users: [is_forgotten(self.storage, self.prepared.keys.campaign_key, each) for each in users]  # noqa: E731
        plan = plan_bucket(replace(shop.rules, variants=asked.n, is_forgotten=erased), bucket, catalog)
        if plan.forgotten:
            raise not_found()
        rows = rows_to_make(plan.generate).to_pylist()
        if asked.seed is not None:
            for row in rows:
                row["seed"] = variant_seed(asked.seed, row["variant"])
                private = shop.rules.maker.fingerprint(
                    row["product_hash"] or "", row["history_hashes"] or (), row["seed"], row["variant"]
                )
                row["fingerprint"] = public_fingerprint(key, private)
        made = [read_served(self.storage, self.campaign, row["fingerprint"]) if row["fingerprint"] else None for row in rows]
        new = iter(self._looked_up([row for row, found in zip(rows, made, strict=True) if found is None], catalog))
        return [found or next(new) for found in made]

    def _history(self, asked: CreativeRequest, user: str) -> pa.Table:
        if asked.history is None:
            found = self.shop.histories.of(user)
        else:
            clicks = [{"product_id": product, "clicked_at": None} for product in asked.history]
            found = pa.Table.from_pylist([{"user_id": user, "clicks": clicks}], self.shop.histories.of(user).schema)
        return found.append_column(RANK, pa.repeat(pa.scalar(user_rank(user), pa.uint64()), found.num_rows))

    def _looked_up(self, rows: list[Row], catalog: Any) -> list[Row]:
        """Rows with history, request and picture file; ServiceError: nothing can be made of the pair."""
        products = LookUp(self.context, catalog).look_up(rows)
        for row in rows:
            if row["reason"] == "unknown_product":
                raise not_found()
            if row["reason"] is not None:
                raise ServiceError(422, row["reason"], f"nothing can be made of this product: {row['reason']}")
        for row, request in zip(rows, self.generate.requests(rows, products.squares), strict=True):
            row["request"], row["data"] = request, products.pictures[row["product_id"]]
        return rows

    # -- finishing -----------------------------------------------------------------------------------------------------------

    def finished(self, row: Row, result: Any) -> Row:
        """A planned row with the engine's result: its objects are in the store, and it is committed."""
        row = row | made_by(result) | {"seconds": None}
        pictures = {row["product_id"]: row["data"]}
        lineage = {name: row.get(name) for name in LINEAGE.names} | self.finishing.digests
        served = lineage | self.finishing.manifest_row(row, pictures) | {"rank": row["variant"], "carried_from": None, "arm": None}
        committed = commit_served(self.storage, self.campaign, served, self.settings.served.keep_days)
        if is_forgotten(self.storage, self.prepared.keys.campaign_key, row["user_id"]):  # erased while it was made
            forget_served(self.storage, [layout.served(self.campaign, row["fingerprint"])], {row["user_id"]})
            raise not_found()
        return committed

    # -- the shop ------------------------------------------------------------------------------------------------------------

    def _open_shop(self, prepared: Prepared) -> Shop:
        pointer, _ = read_pointer(self.storage, self.campaign)
        rules = plan_rules(prepared, None)
        catalog = last_catalog(self.storage, prepared.model_digest, self.campaign, cache_folder()) or self._build_catalog(prepared)
        self._shops += 1
        folder = self._folder.path / f"histories{self._shops}"
        histories = HistoryFiles(prepared.inputs, prepared.keys.user_secret, folder)
        return Shop(catalog, histories, rules, pointer.run_id if pointer else None)

    def _build_catalog(self, prepared: Prepared) -> Catalog:
        """The first of this model: no refresh has run with it yet."""
        history = HistoryEncoder(prepared.model)
        encoders = Encoders(history, TitleTokenizer(prepared.model), reduce=history.reduce, limits=prepared.settings.pictures)
        place = CatalogPlace(self.storage, prepared.model_digest, self.campaign, cache_folder())
        return build_catalog(prepared.inputs, place, encoders, self._folder.path / "products")


class _WithProduct:
    """A catalog with one product more: that of a request."""

    def __init__(self, catalog: Catalog, asked: CreativeRequest, settings: ServeSettings, folder: Path):
        self._catalog = catalog
        self._id = asked.product_id
        picture = _decoded(asked.product.picture, settings.load.max_picture_bytes)
        path = folder / hashlib.sha256(picture).hexdigest()
        path.write_bytes(picture)
        row = dict.fromkeys(WORK.names) | {"product_id": self._id, "key": 0, "title": asked.product.title, "image": str(path)}
        row |= {"selling_points": asked.product.selling_points, "scale": asked.product.scale, "image_stamp": stat(str(path))}
        row |= {"clicked": False, "read_image": True, "read_cutout": False, "cutout_checked": False}
        encoders = Encoders(_no_codes, lambda title: [], limits=settings.pictures)
        self._row = encode_products(pa.Table.from_pylist([row], WORK), encoders)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)

    def facts(self, product_ids: list[str]) -> pa.Table:
        """The catalog's, with the request's product."""
        found = self._catalog.facts(product_ids)
        own = self._row.select(found.column_names).cast(found.schema)
        pieces = [own if each == self._id else found.slice(place, 1) for place, each in enumerate(product_ids)]
        return pa.concat_tables(pieces) if pieces else found

    def embeddings(self, product_ids: list[str]) -> np.ndarray:
        """The catalog's, with the request's product."""
        found = self._catalog.embeddings(product_ids)
        for place, each in enumerate(product_ids):
            if each == self._id:
                found[place] = self._row["embedding"][0].values.to_numpy(zero_copy_only=False)
        return found


def _no_codes(pictures: list) -> np.ndarray:
    raise AssertionError("a request's product was not clicked")


def _decoded(text: str, most: int) -> bytes:
    """A picture's bytes; ServiceError: no base64, or too many."""
    if len(text) > most * 4 // 3 + 4:
        raise ServiceError(413, "too_large_file", f"the picture has more than {most} bytes")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ServiceError(422, "unreadable", "product.picture is not base64") from None
