import numpy as np
import pytest

from vitlab.core.archives import load_arrays
from vitlab.core.integrity import DamagedError

ARRAYS = {
    "label": np.arange(5), "top5": np.arange(10, dtype=np.int32).reshape(5, 2), "one": np.float32(2.5),
    "by_column": np.asfortranarray(np.arange(6.0).reshape(2, 3)), "none": np.empty((0, 3), bool),
    "classes": np.array(["猫", "a dog"]),
}  # fmt: skip


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("verified", [False, True])
def test_arrays_are_those_that_numpy_wrote(write, verified, tmp_path):
    write(tmp_path / "a.npz", **ARRAYS)
    found = load_arrays(
        tmp_path / "a.npz", ("label", "top5", "one", "by_column", "none"), "again", optional=("classes", "absent"),
        verified=verified,
    )  # fmt: skip
    assert set(found) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_both_lengths_of_a_header_are_read(version, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("label.npy", "w") as stream:
        np.lib.format.write_array(stream, ARRAYS["label"], version)
    assert list(load_arrays(tmp_path / "a.npz", ("label",), "again", verified=True)["label"]) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("verified", [False, True])
def test_what_holds_other_things_than_arrays_is_damaged(verified, tmp_path):
    import zipfile

    np.savez(tmp_path / "pickled.npz", label=np.array([{}, None], dtype=object))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("label.npy", "no array")
    np.savez(tmp_path / "other.npz", other=np.arange(3))
    for name in ("pickled", "text", "other"):
        with pytest.raises(DamagedError, match=r"not the arrays that were written.*again"):
            load_arrays(tmp_path / f"{name}.npz", ("label",), "again", verified=verified)
