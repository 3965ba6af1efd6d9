"""Redaction of secrets by value and by form; commits, digests and prose stay."""

import ast
import json
import time
from collections.abc import Iterator

import pytest
from bittensor.sp_core import Keypair

from template.telemetry.redaction import REDACTED, Redactor, secret_values
from tests.fixtures.source import PRODUCT, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HUB_TOKEN = "hf_" + "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dE3f"
SEED = "0x" + SHA256


@pytest.mark.parametrize("secret", ["s3cr3t", COMMIT, 'quo"te\\back', "pä55wörd", "two words", " padded-secret\n"])
def test_redactor_value_is_redacted_in_every_spelling(secret: str) -> None:
    redact = Redactor([secret])
    bare = secret.strip()
    for text in (bare, f"x{bare}y", json.dumps({"k": bare}), repr({"k": bare}), f"a {bare} b {bare}"):
        assert REDACTED in redact(text)
        assert bare not in redact(text)
        assert json.dumps(bare)[1:-1] not in redact(text)
    assert Redactor()(bare) == bare


def test_redactor_overlapping_secrets_are_redacted_whole() -> None:
    assert Redactor(["abcdef", "abcdefghij"])("abcdefghij") == REDACTED


def test_redactor_short_values_stay() -> None:
    assert Redactor(["", "  ", "1", "false"])("loss=1.1 false") == "loss=1.1 false"


FORMS = {
    f"token {HUB_TOKEN}.": HUB_TOKEN,
    f"https://user:{HUB_TOKEN}@host/x": HUB_TOKEN,
    "dial wss://me:p4ssw0rd@node.example:443/ws": "p4ssw0rd",
    "dial wss://k3yk3y@node.example/ws": "k3yk3y",
    "GET https://node.example/ws?apikey=k3yk3y&x=1": "k3yk3y",
    "GET https://cdn.example/f?X-Amz-Signature=abc123&Expires=1": "abc123",
    "Authorization: Bearer abc.def-ghi": "abc.def-ghi",
    "authorization=opaque-thing": "opaque-thing",
    '{"Authorization": "Basic YXBpOmtleQ=="}': "YXBpOmtleQ",
    r'"{\"authorization\": \"token abcdefgh\"}"': "abcdefgh",
    "headers=[(b'authorization', b'Bearer abcdefghijkl')]": "abcdefghijkl",
    "sent bearer abcdefghijklmnopqrst": "abcdefghijklmnopqrst",
    f'{{"secretSeed": "{SEED}", "ss58Address": "5F"}}': SEED,
    f"{{'privateKey': '{SEED}'}}": SEED,
    rf'"{{\"secretPhrase\": \"one two {SEED}\"}}"': SEED,
    f"private_key={SEED}": SEED,
    "password: hunter2": "hunter2",
    f"wandb api_key={COMMIT}": COMMIT,
}


@pytest.mark.parametrize("text", FORMS)
def test_redactor_form_of_a_secret_is_redacted(text: str) -> None:
    redacted = Redactor()(text)
    assert REDACTED in redacted
    assert FORMS[text] not in redacted
    assert redacted.split(REDACTED)[0] == text[: len(redacted.split(REDACTED)[0])]


@pytest.mark.parametrize("words", [12, 15, 18, 21, 24])
def test_redactor_mnemonic_is_redacted(words: int) -> None:
    redact = Redactor()
    for _ in range(20):
        mnemonic = Keypair.generate_mnemonic(words)
        tokens = mnemonic.split()
        for text in (
            mnemonic,
            f"wallet made with {mnemonic}. Keep it.",
            f"mnemonic: {mnemonic}",
            f"\x1b[31m\x1b[1m{mnemonic}\x1b[0m",
            mnemonic.replace(" ", "\n"),
            json.dumps({"secretPhrase": mnemonic}),
            json.dumps(tokens),
            repr(tokens),
            ", ".join(tokens),
        ):
            redacted = redact(text)
            assert REDACTED in redacted
            assert tokens[0] not in redacted.split()
            assert " ".join(tokens[1:3]) not in redacted


@pytest.mark.parametrize(
    "text",
    [
        f"round=3 hotkey=5F3sa2TJAWMqDhXG6jhV4N8ko9SxwGy8TpaNS1repo5EYjQX entry=user/repo:1:{COMMIT} loss=1.25",
        f"data.jsonl sha256={SHA256} commit {COMMIT}",
        "hf_hub_download of user/dataset failed, hf_transfer is off",
        "authorization failed: the Hub refuses this login",
        "the chain does not answer; it will be asked again when the next block comes and the socket has been replaced",
        "abandon ability able about above absent absorb abstract absurd abuse access",
        "train 12/400 tokens, queue=3, https://huggingface.co/datasets/user/repo?recursive=true&expand=false",
        "5F3sa2 set weights at block 123456 for 17 uids, the next are due at block 123816",
    ],
)
def test_redactor_commits_digests_and_prose_stay(text: str) -> None:
    assert Redactor(["s3cr3t"])(text) == text


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield the texts of a module, with a word for each value in them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_redactor_leaves_the_products_own_messages() -> None:
    """Such as the one about a locked hotkey, which has the word password."""
    redact = Redactor()
    trees = {path: tree for path, tree in parse(*PRODUCT).items() if path.parent.name != "bench"}
    texts = {text for tree in trees.values() for text in _texts(tree)}
    assert len(texts) > 3000 and any("put its password into" in text for text in texts)
    assert [text for text in texts if redact(text) != text] == []


def test_redactor_hostile_line_takes_linear_time() -> None:
    redact = Redactor(["s3cr3t"])
    started = time.process_time()
    for text in ("abandon " * 11 + "the ", "://" * 4, "mnemonic", "authorization: ", "?token", "'\\\"" * 4, "a" * 8):
        redact(text * (200_000 // len(text)))
    # Milliseconds each; a pattern that backtracks takes minutes.
    assert time.process_time() - started < 20


def test_secret_values_are_chosen_by_variable_name() -> None:
    secret = {
        *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"),
        *("BT_WALLET_PASSWORD", "BT_PW__ROOT_WALLETS_COLDKEY"),
    }
    other = {
        *("BT_WALLET_PASSWORD_FILE", "TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_IMPLICIT_TOKEN", "PYTHONHASHSEED"),
        "PATH",
    }
    assert set(secret_values({name: name for name in secret | other})) == secret
