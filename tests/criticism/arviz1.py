"""ArviZ 1.x on an export, in an environment of its own without torch: python arviz1.py FOLDER; run by test_labelled.py.

FOLDER holds export.pickle, the arrays of an export and log densities to compare, and draws.nc, what ArviZ 0.2x wrote of the
same export. Writes found.json for the test to compare.
"""

import json
import pickle
import sys
from pathlib import Path


def main(folder: Path) -> None:
    import arviz
    import matplotlib
    import numpy as np
    import xarray as xr

    from ppl_vae.criticism.labelled import elpd, labelled, loo

    matplotlib.use("agg")
    assert int(arviz.__version__.split(".")[0]) >= 1
    export, without, densities = pickle.loads((folder / "export.pickle").read_bytes())
    tree = labelled(export)
    assert isinstance(tree, xr.DataTree)

    tree.to_netcdf(folder / "tree.nc")
    again, older = arviz.from_netcdf(folder / "tree.nc"), arviz.from_netcdf(folder / "draws.nc")
    for group in export.groups:
        for other in (again, older):
            assert tree[group].to_dataset().equals(other[group].to_dataset()), group
            assert tree[group].attrs.keys() == other[group].attrs.keys(), group
        assert again[group].attrs == tree[group].attrs and again.attrs == tree.attrs

    plot = arviz.plot_ppc_dist(tree, num_samples=10, backend="matplotlib")
    arviz.plot_ppc_dist(tree, group="prior_predictive", num_samples=10, backend="matplotlib")
    assert plot is not None
    with_k = arviz.loo(tree, pointwise=True)
    try:
        arviz.loo(labelled(without))
        failed = ""
    except TypeError as error:
        failed = str(error)
    compared = arviz.compare({name: elpd(*numbers) for name, numbers in densities.items()}, round_to="none")
    print(elpd(*next(iter(densities.values()))))
    found = {
        "summary": arviz.summary(tree, kind="stats", round_to="none")["mean"].tolist(),
        "loo": np.asarray(with_k.elpd_i).tolist(),
        "ours": np.asarray(loo(tree).elpd_i).tolist(),
        "k": np.asarray(with_k.pareto_k).tolist(),
        "failed": failed,
        "ranks": compared.index.tolist(),
        "differences": np.abs(compared["elpd_diff"]).tolist(),
        "errors": compared["dse"].tolist(),
        "torch": "torch" in sys.modules,
        "version": arviz.__version__,
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
