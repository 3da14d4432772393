"""Progress bars: of a notebook where it can show them, else of a terminal."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a notebook that cannot, for lack of ipywidgets, shows text: no news to its user
    from tqdm.auto import tqdm

__all__ = ["tqdm"]
