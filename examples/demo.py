"""Runs two examples and writes one page: a photograph at several bit rates, and digits with new samples.

    python examples/demo.py
    KERAS_BACKEND=torch python examples/demo.py --dataset fashion_mnist --epochs 3 --prior-epochs 5

`make demo` runs it. The pictures and the page, `index.html`, are written to the folder of `--output`.
"""

import digits
import page
import photographs

if __name__ == "__main__":
    page.command(__doc__, "demo", (photographs.add_arguments, photographs.draw), (digits.add_arguments, digits.draw))
