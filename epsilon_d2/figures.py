"""The paper's figure of attention for a trained model (Fig. 1)."""

from __future__ import annotations

import argparse

from matplotlib.figure import Figure

from epsilon_d2.pictures.attention import AttendedImage, attention_by_module, attentions_figure, spoken_labels
from zeroshot_d2.multilabel.figures import example_records
from zeroshot_d2.multilabel.registration import EVALUATOR_TYPE
from zeroshot_d2.pictures.command import FigureCommand, load_models, predictions


def draw_attention(args: argparse.Namespace) -> Figure:
    """Where the groups of GPA and the feature blocks of GFP look in the same images."""
    dataset, predictors = load_models(args, EVALUATOR_TYPE)
    predictor = predictors[args.name]
    records = example_records(dataset, predictor.vocabulary, args.num_images)
    return attentions_figure(
        [
            AttendedImage(image, attention_by_module(tags), spoken_labels(tags))
            for _, image, tags in predictions(predictor, records, attention=True)
        ]
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-images", type=int, default=3, help="default: 3")


FIGURES = {"attention": FigureCommand("where the groups look (Fig. 1)", draw_attention, _arguments)}
