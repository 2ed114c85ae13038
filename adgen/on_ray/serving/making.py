"""One request -> its creatives, by the refresh's own steps: plan, look-up, engine, finishing. No Ray is called here."""

import asyncio
import base64
import binascii
import hashlib
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from adgen.creatives import layout
from adgen.creatives.publish import read_pointer
from adgen.creatives.served import commit_served, forget_served, read_served
from adgen.creatives.tombstones import is_forgotten
from adgen.generation.request_queue import RequestQueue
from adgen.images import use_limits
from adgen.on_ray.refresh.catalog_encoders import HistoryEncoder, TitleTokenizer
from adgen.on_ray.refresh.commit import FinishAndCommit
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.refresh.look_up import LookUp
from adgen.on_ray.refresh.payload import lossless, product_facts
from adgen.on_ray.refresh.planning import Prepared, cache_folder, plan_rules, prepare
from adgen.on_ray.refresh.provenance import provenance
from adgen.on_ray.rows import Row
from adgen.on_ray.serving.api import CreativeRequest, ServiceError, not_found
from adgen.on_ray.serving.histories import HistoryFiles
from adgen.on_ray.serving.settings import ServeSettings
from adgen.records import public_fingerprint, variant_seed
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


class CreativeMaker:
    """An engine with all that a request needs around it."""

    def __init__(self, settings: ServeSettings):
        """RunError (of any kind): store, inputs, keys or model cannot be used."""
        self.settings = settings
        refresh = settings.refresh()
        use_limits(refresh.pictures)
        self._folder = tempfile.TemporaryDirectory(prefix="adgen-serve-")
        self._shops = 0
        self.prepared: Prepared = prepare(refresh)
        self.campaign, self.storage = refresh.campaign, self.prepared.storage
        self.shop = self._open_shop(self.prepared)
        items = self.prepared.model.config.history_items
        digests = self.prepared.model_digest, self.prepared.settings_digest
        untrained = bool(self.prepared.model.facts.having("untrained"))
        self.context = Context(self.prepared.settings, layout.new_run_id(), *digests, None, items, untrained)
        self.generate, self.finishing = Generate(self.context), FinishAndCommit(self.context)
        self.engine = self.generate.engine
        self.queue = RequestQueue(self.engine.generate, lambda: self.engine.num_slots)
        self._shared = SharedWork()

    def follow(self) -> bool:
        """Read the inputs again where another run was published since; whether it was. Blocks: call it from a thread."""
        pointer, _ = read_pointer(self.storage, self.campaign)
        if (pointer.run_id if pointer else None) == self.shop.pointer:
            return False
        self.prepared = prepare(self.settings.refresh())
        self.shop = self._open_shop(self.prepared)
        return True

    async def make(self, asked: CreativeRequest) -> list[Row]:
        """Served rows of the request's creatives, by variant. ServiceError. Cancelled, its rows leave the queue."""
        rows = await asyncio.to_thread(self.planned, asked)
        work = (self._shared.do(row["fingerprint"], lambda row=row: self._one(row)) for row in rows)
        return await asyncio.gather(*work)

    # -- plan ----------------------------------------------------------------------------------------------------------------

    def planned(self, asked: CreativeRequest) -> list[Row]:
        """The refresh's plan of the pair, looked up, with the engine's request of each row. ServiceError."""
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
        return self._looked_up(rows, catalog)

    def _history(self, asked: CreativeRequest, user: str) -> pa.Table:
        if asked.history is None:
            found = self.shop.histories.of(user)
        else:
            clicks = [{"product_id": product, "clicked_at": None} for product in asked.history]
            found = pa.Table.from_pylist([{"user_id": user, "clicks": clicks}], self.shop.histories.of(user).schema)
        return found.append_column(RANK, pa.repeat(pa.scalar(user_rank(user), pa.uint64()), found.num_rows))

    def _looked_up(self, rows: list[Row], catalog: Any) -> list[Row]:
        """Rows with history, conditions and pictures; ServiceError: nothing can be made of the pair."""
        pictures = LookUp(self.context, catalog).look_up(rows)
        conditions = self.generate._conditions(rows, pictures)
        for row in rows:
            if row["reason"] == "unknown_product":
                raise not_found()
            if row["reason"] is not None:
                raise ServiceError(422, row["reason"], f"nothing can be made of this product: {row['reason']}")
        for row, request in zip(rows, self.generate._requests(rows, conditions, pictures), strict=True):
            row["request"], row["data"] = request, pictures[row["product_id"]]
        return rows

    # -- making --------------------------------------------------------------------------------------------------------------

    async def _one(self, row: Row) -> Row:
        found = await asyncio.to_thread(read_served, self.storage, self.campaign, row["fingerprint"])
        if found is not None:
            return found
        result = await self.queue.ask(row["request"])
        return await asyncio.to_thread(self._finish, row, result)

    def _finish(self, row: Row, result: Any) -> Row:
        """Finished, in the store, committed."""
        background, made = self.generate.made(result, product_facts(row, row["data"]))
        row = row | {"title": result.title, "picture": lossless(background), "seconds": None} | made
        row |= provenance(result, self.context.settings)
        pictures = {row["product_id"]: row["data"]}
        lineage = self.finishing.lineage([row])[0]
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
        folder = Path(self._folder.name) / f"histories{self._shops}"
        histories = HistoryFiles(prepared.inputs, prepared.keys.user_secret, folder)
        return Shop(catalog, histories, rules, pointer.run_id if pointer else None)

    def _build_catalog(self, prepared: Prepared) -> Catalog:
        """The first of this model: no refresh has run with it yet."""
        history = HistoryEncoder(prepared.model)
        encoders = Encoders(history, TitleTokenizer(prepared.model), reduce=history.reduce, limits=prepared.settings.pictures)
        place = CatalogPlace(self.storage, prepared.model_digest, self.campaign, cache_folder())
        return build_catalog(prepared.inputs, place, encoders, Path(self._folder.name) / "products")


class SharedWork:
    """Work by name that is done once for all who ask for it meanwhile, and is cancelled when the last of them goes away."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task] = {}
        self._waiters: dict[asyncio.Task, int] = {}

    async def do(self, name: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """The result of `work`, which is begun where nobody does it now."""
        task = self._tasks.get(name)
        if task is None:
            task = self._tasks[name] = asyncio.ensure_future(work())
            self._waiters[task] = 0
        self._waiters[task] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiters[task] -= 1
            if not self._waiters[task]:
                del self._waiters[task]
                del self._tasks[name]
                task.cancel()


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
