"""Characters' probabilities to text, as CTC has it: repeats count once, number 0 is none."""

from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        file = Path(args["model_repository"], args["model_version"], "characters.txt")
        self.characters = ["", *file.read_text(encoding="utf-8").split("\n"), " "]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        probability = pb_utils.get_input_tensor_by_name(request, "characters").as_numpy()
        count = len(pb_utils.get_input_tensor_by_name(request, "box").as_numpy())
        read = [self.read(row) for row in probability[:count]]
        text = np.array([text.encode() for text, _ in read], np.object_)
        score = np.array([score for _, score in read], np.float32)
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor("text", text), pb_utils.Tensor("score", score)]
        )

    def read(self, row):
        """The text of a line, and the mean probability of its characters."""
        best = row.argmax(axis=1)
        kept = np.insert(best[1:] != best[:-1], 0, True) & (best != 0)
        text = "".join(self.characters[number] for number in best[kept])
        return text, float(row.max(axis=1)[kept].mean()) if kept.any() else 0.0
