"""An invitation is read as a stranger's: what it says is checked, and anything else is one line."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from certs.authority import issue_ca
from federation.errors import CertificateError, ConfigError
from federation.invitation import Expectations, Invitation, read_invitation, spell_authority
from federation.site_key import new_key

CA = issue_ca(new_key(), 10, datetime.now(UTC)).decode()
EXPECTS = Expectations(
    cameras="top,wrist",
    empty_cameras=0,
    joint_units="degrees",
    fps=30,
    policy="lerobot/smolvla_base",
    trained_values=99_880_992,
    download_bytes=199_761_984,
    upload_bytes=103_004_220,
)
INVITATION = Invitation(
    so100_invitation=1,
    site="lab-b",
    superlink="fed.example.org:8443",
    key="SHA256:x",
    authority=CA,
    expects=EXPECTS,
)
DATA = json.loads(INVITATION.write())


def _read(folder: Path, content: Any) -> Invitation:
    file = folder / "i.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return read_invitation(file)


def test_it_comes_back_as_it_was_written(tmp_path: Path) -> None:
    assert _read(tmp_path, INVITATION.write()) == INVITATION
    assert _read(tmp_path, DATA | {"later": "a key of a newer release"}) == INVITATION


def test_of_its_authority_nothing_is_taken_but_the_certificate_whose_digits_are_compared(
    tmp_path: Path,
) -> None:
    block = CA.replace("BEGIN CERTIFICATE", "BEGIN TRUSTED CERTIFICATE").replace("END C", "END TRUSTED C")
    for more in ("# a remark\n" + CA, CA + block, block + CA):
        assert _read(tmp_path, DATA | {"authority": more}).authority == CA


def test_an_authority_with_an_extension_twice_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: bytes) -> Any:
        raise x509.DuplicateExtension(
            "Duplicate 2.5.29.19 extension found", x509.ObjectIdentifier("2.5.29.19")
        )

    monkeypatch.setattr(x509, "load_pem_x509_certificates", load)
    with pytest.raises(ConfigError, match="must be one certificate of an authority"):
        _read(tmp_path, DATA)


def test_what_it_expects_is_one_line_with_the_bytes_of_a_round() -> None:
    assert EXPECTS.spell() == (
        "cameras top,wrist; joints in degrees; 30 frames/s; policy lerobot/smolvla_base; "
        "a round sends 199.8 MB to a site and 103.0 MB back"
    )
    unknown = EXPECTS.model_copy(update={"download_bytes": None, "empty_cameras": 1})
    assert "1 of them may be missing" in unknown.spell()
    assert "not known here" in unknown.spell()


def test_the_authority_is_thirty_digits_in_groups_and_another_one_has_others() -> None:
    spoken = spell_authority(CA)
    assert [len(group) for group in spoken.split()] == [5] * 6
    assert spoken.replace(" ", "").isdecimal()
    assert spell_authority("a comment\n" + CA) == spoken
    assert spell_authority(issue_ca(new_key(), 10, datetime.now(UTC)).decode()) != spoken


@pytest.mark.parametrize("pem", ["", "no certificate", CA + CA, CA[:-60]])
def test_what_is_no_authority_is_refused(pem: str) -> None:
    with pytest.raises(CertificateError, match="must be one certificate of an authority"):
        spell_authority(pem)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"so100_invitation": 2}, "so100_invitation: Input should be 1"),
        ({"site": "../x"}, "site name '../x'"),
        ({"site": 7}, "site: Input should be a valid string"),
        ({"superlink": "fed.example.org"}, "must be HOST:PORT"),
        ({"superlink": "fed.example.org:0"}, "must be HOST:PORT"),
        ({"superlink": "https://fed.example.org:443"}, "must be a DNS name or an IP address"),
        ({"superlink": "-fed;x:443"}, "must be a DNS name"),
        ({"authority": "x"}, "certificate of an authority"),
        ({"authority": "x" * 20_001}, "authority: String should have at most"),
        ({"key": None}, "key: Input should be a valid string"),
        ({"expects": {}}, "expects.cameras: Field required"),
        ({"expects": DATA["expects"] | {"fps": 0}}, "expects.fps: "),
        ({"expects": DATA["expects"] | {"fps": 30.5}}, "expects.fps: "),
        ({"expects": DATA["expects"] | {"joint_units": "inches"}}, "expects.joint_units: "),
        ({"expects": DATA["expects"] | {"cameras": "top,top"}}, "cameras 'top,top': must be different"),
        ({"expects": DATA["expects"] | {"cameras": "a/b"}}, "cameras 'a/b'"),
        ({"expects": DATA["expects"] | {"cameras": "top\n,wrist"}}, "expects.cameras: must be printable"),
        ({"expects": DATA["expects"] | {"policy": "tiny\x1b[1A\r"}}, "expects.policy: must be printable"),
        ({"expects": DATA["expects"] | {"upload_bytes": -1}}, "expects.upload_bytes: "),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_key(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        _read(tmp_path, DATA | change)
    text = str(error.value)
    assert text.startswith(f"invitation {tmp_path / 'i.json'}: ")
    assert message in text
    assert text.endswith("; ask the operator to send it again")
    assert text.isprintable()


def test_a_file_that_is_missing_too_large_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for file, message in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=message):
            read_invitation(file)
    with pytest.raises(ConfigError, match="larger than"):
        _read(tmp_path, b" " * 70_000)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    with pytest.raises(ConfigError) as error:
        _read(tmp_path_factory.mktemp("i"), content)
    assert str(error.value).isprintable()


@given(st.sampled_from(sorted(DATA)), _JSON)
def test_any_value_in_the_place_of_one_is_taken_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: Any
) -> None:
    try:
        found = _read(tmp_path_factory.mktemp("i"), DATA | {key: value})
    except ConfigError as error:
        assert str(error).isprintable()
    else:
        assert getattr(found, key) in (value, getattr(INVITATION, key))
