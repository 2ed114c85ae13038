"""Bearer tokens: only hashes are kept; scope, expiry and revoking hold at the next request."""

import json
from datetime import timedelta

import pytest

from adgen.cli import main
from adgen.creatives.bearer_tokens import TokenFile, new_token
from adgen.creatives.documents import utc_now
from adgen.errors import SettingsError


def test_a_token_is_found_by_itself_and_not_in_the_file(tmp_path):
    file = tmp_path / "tokens.json"
    made = new_token(file, "shop", ["read"])
    other = new_token(file, "batch", ["admin"], days=1)
    tokens = TokenFile(file)
    assert made not in file.read_text()
    assert file.stat().st_mode & 0o007 == 0
    shop, batch = tokens.find(made), tokens.find(other)
    assert (shop.name, shop.allows("read"), shop.allows("generate")) == ("shop", True, False)
    assert (batch.allows("generate"), batch.is_expired(), batch.is_expired(utc_now() + timedelta(days=2))) == (True, False, True)
    assert tokens.find(made + "x") is None
    assert tokens.find("\ud800") is None


def test_a_revoked_token_is_unknown_at_the_next_request(tmp_path):
    file = tmp_path / "tokens.json"
    made = new_token(file, "shop", ["read"])
    tokens = TokenFile(file)
    assert tokens.find(made)
    file.write_text("[]")
    assert tokens.find(made) is None


@pytest.mark.parametrize("text", ["", "{}", '[{"name": "a"}]', "[" * 100_000, '[{"name": "a", "sha256": "b", "scopes": ["read"]}]'])
def test_a_file_that_is_no_list_of_tokens_is_named(tmp_path, text):
    (tmp_path / "tokens.json").write_text(text)
    with pytest.raises(SettingsError, match=r"tokens\.json"):
        TokenFile(tmp_path / "tokens.json")


def test_a_file_that_everybody_can_write_is_refused(tmp_path):
    new_token(file := tmp_path / "tokens.json", "shop", ["read"])
    file.chmod(0o666)
    with pytest.raises(SettingsError, match="chmod o-w"):
        TokenFile(file)


def test_the_command_prints_the_token_once_and_refuses_a_second_of_the_name(tmp_path, capsys):
    words = ["token", "new", str(tmp_path / "t.json"), "--name", "shop", "--scope", "read", "--scope", "generate"]
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert TokenFile(tmp_path / "t.json").find(made["token"]).scopes == ("read", "generate")
    assert main(words) == 1
    assert "already" in capsys.readouterr().err
