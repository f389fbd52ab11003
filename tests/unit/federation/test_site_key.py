"""The line that goes by mail: however it arrives, it is the key that was sent, or one clear error."""

import base64
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from federation.errors import CertificateError
from federation.site_key import (
    check_site_name,
    load_site_key,
    new_key,
    public_key,
    read_key_line,
    site_private_key,
)

PRIVATE = new_key()
KEY = public_key(PRIVATE)
LINE = KEY.spell("lab-b")


def test_the_line_is_an_openssh_key_with_name_and_fingerprint() -> None:
    kind, encoded, name, fingerprint = LINE.split()
    assert (kind, name, fingerprint) == ("ecdsa-sha2-nistp384", "lab-b", KEY.fingerprint)
    assert len(base64.b64decode(encoded)) == 136
    assert KEY.spell().split()[2:] == [KEY.fingerprint]
    serialization.load_ssh_public_key(LINE.encode())


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(LINE)
    try:
        result = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no ssh-keygen here")
    assert result.stdout.split()[:3] == ["384", KEY.fingerprint, "lab-b"]


@given(st.data())
def test_blanks_breaks_quotes_and_marks_of_mail_anywhere_change_nothing(data: st.DataObject) -> None:
    noise = st.text(st.sampled_from(" \t\r\n>\"'`\\\u00a0\u200b\u201c\u201d"), max_size=4)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(LINE)), max_size=8)))
    pieces = [LINE[a:b] for a, b in zip([0, *cuts], [*cuts, len(LINE)], strict=True)]
    assert read_key_line("".join(data.draw(noise) + piece for piece in pieces) + data.draw(noise)) == KEY


@given(st.text(st.characters(exclude_characters=":"), max_size=60))
def test_words_before_and_behind_change_nothing(words: str) -> None:
    words = words.replace("ecdsa", "")
    assert read_key_line(f"{words}\n{LINE}\n{words}") == KEY
    assert read_key_line(f"{KEY.line} {words}") == KEY


@given(st.integers(0, len(KEY.line) - 1), st.characters(codec="ascii"))
def test_one_wrong_character_is_refused_or_changes_nothing(place: int, other: str) -> None:
    changed = KEY.line[:place] + other + KEY.line[place + 1 :]
    try:
        found = read_key_line(f"{changed} lab-b {KEY.fingerprint}")
    except CertificateError as error:
        assert "\n" not in str(error)
    else:
        assert found == KEY


@given(st.text(max_size=300))
def test_any_text_is_a_key_or_one_line(text: str) -> None:
    with pytest.raises(CertificateError) as error:
        read_key_line(text)
    assert "so100-site key" in str(error.value)
    assert str(error.value).isprintable()


@given(st.binary(min_size=136, max_size=136))
def test_bytes_that_are_no_point_of_the_curve_are_refused(blob: bytes) -> None:
    with pytest.raises(CertificateError, match="cut off or was changed"):
        read_key_line(f"ecdsa-sha2-nistp384 {base64.b64encode(blob).decode()}")


def _other_kinds() -> list[str]:
    keys = [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())]
    forms = (serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return [key.public_key().public_bytes(*forms).decode() for key in keys]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((line, "no key of the kind ecdsa-sha2-nistp384") for line in _other_kinds()),
        (LINE + "\n" + public_key(new_key()).spell(), "2 keys"),
        (KEY.line[:-20], "cut off or was changed"),
        (f"{KEY.line} lab-b {public_key(new_key()).fingerprint}", "does not have the fingerprint"),
        (LINE[:-10], "does not have the fingerprint"),
        ("x" * 10_001, "too many"),
    ],
)
def test_what_is_wrong_with_a_line_is_named(text: str, message: str) -> None:
    with pytest.raises(CertificateError, match=message):
        read_key_line(text)


def test_a_private_key_that_was_pasted_is_told_and_not_repeated() -> None:
    private = site_private_key(PRIVATE).decode()
    with pytest.raises(CertificateError, match=r"this is a private key.*so100-site key --new") as error:
        read_key_line(private)
    assert not any(part in str(error.value) for part in private.split() if len(part) > 20)


def test_a_private_key_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "node.key"
    with pytest.raises(CertificateError, match="is missing; fix"):
        load_site_key(file, "fix")
    file.write_bytes(site_private_key(PRIVATE))
    assert public_key(load_site_key(file, "fix")) == KEY
    file.write_text("no key")
    with pytest.raises(CertificateError, match="cannot be read as an OpenSSH key; fix"):
        load_site_key(file, "fix")


@pytest.mark.parametrize("name", ["", "Lab", "lab b", "-lab", "lab-", "../x", "x" * 64, "lab_b"])
def test_a_site_name_is_a_folder_a_label_and_a_node_at_once(name: str) -> None:
    check_site_name("lab-b")
    with pytest.raises(CertificateError, match="site name"):
        check_site_name(name)
