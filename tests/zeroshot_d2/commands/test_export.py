"""The command that writes a model as a file: what it needs. That the file does what the model does is tested by system."""

import pytest

from zeroshot_d2.commands.export import main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.onnx"], "which model? Give --model FOLDER, or --config-file FILE and --weights FILE"),
        (["--config-file", "demo/epsilon.yaml"], "the following arguments are required: --output"),
        (
            ["--config-file", "demo/epsilon.yaml", "--output", "a.onnx", "--fromat", "x"],
            "unrecognized arguments: --fromat x",
        ),
        (["--config-file", "demo/epsilon.yaml", "--output", "a.onnx", "--format", "x"], "invalid choice: 'x'"),
    ],
)
def test_arguments_that_do_not_fit(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_the_ending_is_looked_at_before_the_model_is_built(tmp_path):
    words = ["--config-file", "demo/epsilon.yaml", "--weights", str(tmp_path / "absent.pth")]
    with pytest.raises(ValueError, match=r"a file of format onnx ends with \.onnx, got .*a\.pt2"):
        main([*words, "--output", str(tmp_path / "a.pt2")])
    with pytest.raises(FileNotFoundError, match=r"--weights .*absent\.pth do not exist"):
        main([*words, "--output", str(tmp_path / "a.onnx")])
