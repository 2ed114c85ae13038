"""What changed since a run, as the API tells consumers."""

import pyarrow as pa
import pytest
from support.runs import make_rows, pair_ids, publish_rows, with_values

from adgen.creatives import changes
from adgen.creatives.storage import Storage
from adgen.errors import ConsumerError
from adgen.records import REJECTED


def test_changes_are_added_changed_and_withdrawn(store: Storage):
    pairs = pair_ids(8)
    same, other, gone, refused, mended = ([pairs[number]] for number in range(5))
    first = publish_rows(
        store, pa.concat_tables([make_rows(store, same + other + gone + refused), make_rows(store, mended, status=REJECTED)])
    )
    new = pa.concat_tables(
        [
            make_rows(store, same + mended + pairs[5:7]),
            make_rows(store, other, "other look"),
            make_rows(store, refused + pairs[7:], status=REJECTED),
        ]
    )
    new = with_values(new, user_key=[f"rotated {number}" for number in range(new.num_rows)])
    second = publish_rows(store, new)
    found = {(change.kind, change.row["pair_id"]): change for change in second.changes_since(first.run.run_id)}
    assert set(found) == {
        *(("added", pair) for pair in (*mended, *pairs[5:7])),
        ("changed", other[0]),
        *(("withdrawn", pair) for pair in (*gone, *refused)),
    }
    assert found["changed", other[0]].before["title"] == "plain"
    assert found["changed", other[0]].after["title"] == "other look"
    assert found["withdrawn", gone[0]].after is None
    assert found["withdrawn", refused[0]].after["status"] == "rejected"
    assert found["added", mended[0]].before["status"] == "rejected"
    assert found["added", pairs[5]].before is None
    assert [change.kind for change in first.changes_since(first.run.run_id)] == []
    with pytest.raises(ConsumerError, match="there is no such run"):
        second.changes_since("20200101000000-000000-00000000")


@pytest.mark.parametrize("digits", [0, 1, 2])
def test_changes_are_the_same_however_many_buckets_there_are(folder_store: Storage, monkeypatch: pytest.MonkeyPatch, digits: int):
    first = publish_rows(folder_store, make_rows(folder_store, pair_ids(60)))
    rows = pa.concat_tables([make_rows(folder_store, pair_ids(30, 20), "new"), make_rows(folder_store, pair_ids(20))])
    second = publish_rows(folder_store, rows)
    monkeypatch.setattr(changes, "digits_for", lambda rows: digits)
    found = {(change.kind, change.row["pair_id"]) for change in second.changes_since(first.run.run_id)}
    assert found == {("changed", pair) for pair in pair_ids(30, 20)} | {("withdrawn", pair) for pair in pair_ids(10, 50)}


def test_files_that_both_runs_have_are_not_read(folder_store: Storage):
    rows = make_rows(folder_store, pair_ids(20))
    first = publish_rows(folder_store, rows, rows_per_file=10)
    second = publish_rows(folder_store, rows, rows_per_file=10)
    for file in (*first.run.manifest, *second.run.manifest):
        folder_store.delete(file.key)
    assert list(second.changes_since(first.run.run_id)) == []
