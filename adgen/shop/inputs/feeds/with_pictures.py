"""A feed's import with its pictures: fetched from the web, and cut out, as far as the operator asks for it."""

from dataclasses import asdict, dataclass
from pathlib import Path

from adgen.errors import SettingsError
from adgen.shop.inputs.cutters import CutOuts, open_cutter
from adgen.shop.inputs.feeds.products import FeedOptions, FeedSummary, import_feed
from adgen.shop.inputs.feeds.staging import local_folder
from adgen.shop.inputs.web.fetcher import Fetcher
from adgen.shop.inputs.web.pictures import WebPictures
from adgen.terminal import TerminalProgress

SHEET = "doubtful_cutouts.html"
MAX_WORKERS = 256


@dataclass(frozen=True)
class PictureOptions:
    """What is done about pictures."""

    fetch: bool = False
    workers: int = 16
    cutter: str | None = None
    weights: Path | None = None

    def __post_init__(self):
        if not 1 <= self.workers <= MAX_WORKERS:
            raise SettingsError(f"--fetch-workers {self.workers}: is not from 1 to {MAX_WORKERS}")
        if self.weights is not None and not self.weights.is_dir():
            raise SettingsError(f"--cutter-weights {self.weights}: is no folder")


@dataclass
class PictureSummary(FeedSummary):
    """With what became of pictures."""

    fetched: int = 0
    fetched_before: int = 0
    cut_out: int = 0
    """By the cutter."""
    cut_by_border: int = 0
    """Whose border the refresh will remove."""
    no_cutout: int = 0
    """Without a cut-out: their creatives will have this reason."""
    doubtful_cutouts: int = 0
    """Shown on the sheet."""
    sheet: str | None = None


def import_with_pictures(
    file: str, dest: str | Path, options: FeedOptions, pictures: PictureOptions, fetcher: Fetcher | None = None
) -> PictureSummary:
    """`import_feed`, with the pictures fetched and cut out. SettingsError: the cutter is none."""
    target = local_folder(dest)
    fetcher = fetcher or Fetcher()
    web = WebPictures(target, fetcher if pictures.fetch else None, pictures.workers, options.max_bad_share)
    cuts = CutOuts(target, pictures.cutter, open_cutter(pictures.cutter, pictures.weights)) if pictures.cutter else None
    with TerminalProgress() as bar:
        found = import_feed(
            file, target, options, [web, *([cuts] if cuts else [])], fetcher, bar if pictures.fetch or cuts else None
        )
    summary = PictureSummary(**asdict(found))
    summary.fetched, summary.fetched_before = web.fetched, web.there
    if cuts:
        summary.cut_out, summary.cut_by_border, summary.no_cutout = cuts.made, cuts.by_border, cuts.none
        summary.doubtful_cutouts = cuts.worst.count
        if cuts.worst.count:
            cuts.worst.write(target / SHEET)
            summary.sheet = str(target / SHEET)
        else:
            (target / SHEET).unlink(missing_ok=True)
    return summary
