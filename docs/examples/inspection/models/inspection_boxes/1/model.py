"""What the detector says of tiles, as boxes on the whole picture."""

import json

import suppression
import triton_python_backend_utils as pb_utils

NUMBERS = {"score": float, "overlap": float, "margin": int, "most": int}


class TritonPythonModel:
    def initialize(self, args):
        told = json.loads(args["model_config"])["parameters"]
        self.settings = {name: kind(told[name]["string_value"]) for name, kind in NUMBERS.items()}

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = ("scores", "distances", "window", "size")
        given = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in names)
        found = suppression.found(*given, **self.settings)
        made = zip(("boxes", "scores", "classes"), found, strict=True)
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in made])
