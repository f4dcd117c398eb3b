"""Send a model to the Hugging Face Hub, as one folder.

    python -m zeroshot_d2 push-to-hub --model output/demo --repo owner/name --private
    python -m zeroshot_d2 push-to-hub --model models/demo --repo owner/name --revision v1

A finished run is saved first, as save-pretrained does. A folder that was saved is sent as it is, with your changes to its
README.md. The token is that of HF_TOKEN or of `hf auth login`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..checkpoint import MODEL_FILE, read_checkpoint
from ..cli import Parser, add_model_arguments, model_config
from ..hub import PREFIX, check_repository, push
from ..predictor import build_predictor
from ..pretrained import save
from .save_pretrained import add_card_arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the config, the weights or the results do not exist.
        ValueError: the model or the name of the repository is faulty, or there is no token.
        OSError: the Hub refuses the model, or cannot be reached.
    """
    parser = Parser("python -m zeroshot_d2 push-to-hub", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="made where there is none")
    parser.add_argument("--revision", metavar="BRANCH", help="made where there is none; default: the main branch")
    parser.add_argument("--private", action="store_true", help="nobody else may see the repository")
    add_card_arguments(parser)
    args = parser.parse(argv)
    check_repository(args.repo)
    cfg = model_config(args)
    weights = Path(cfg.MODEL.WEIGHTS)
    with tempfile.TemporaryDirectory(prefix="zeroshot-d2-") as temporary:
        if weights.name == MODEL_FILE and not (args.opts or args.license or args.results or args.config_file):
            read_checkpoint(weights)  # says what is wrong with it, if something is
            folder = weights.parent
        else:
            name = args.repo.partition("/")[2]
            options = {"license": args.license, "results": args.results, "source": f"{PREFIX}{args.repo}"}
            folder = save(build_predictor(cfg), Path(temporary) / name, **options)
        commit = push(folder, args.repo, revision=args.revision, private=args.private)
    print(f"{PREFIX}{args.repo}@{commit}")
    return 0
