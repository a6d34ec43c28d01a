"""JPEG to tiles for the detector."""

import io
import json

import cutting
import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image, UnidentifiedImageError


class TritonPythonModel:
    def initialize(self, args):
        told = json.loads(args["model_config"])["parameters"]
        values = (int(told[name]["string_value"]) for name in ("tile", "overlap", "most"))
        self.tile, self.overlap, self.most = values

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        data = pb_utils.get_input_tensor_by_name(request, "jpeg").as_numpy()[0]
        try:
            picture, places = self.opened(data)
        except ValueError as wrong:
            error = pb_utils.TritonError(str(wrong), pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        made = {
            "tile": cutting.cut(picture, places),
            "window": places,
            "size": np.array(picture.shape[1::-1], np.int64),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(*pair) for pair in made.items()])

    def opened(self, data):
        """The pixels and the tiles' places. Raises ValueError with what is wrong for the client."""
        if not data:
            raise ValueError("the picture has no bytes; send a JPEG file")
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                places = self.places(*image.size)
                return np.asarray(image.convert("RGB")), places
        except UnidentifiedImageError:
            raise ValueError(f"the picture is no JPEG: it begins with {data[:4].hex()}") from None
        except Image.DecompressionBombError:
            raise ValueError(f"the picture is far too large: {self.limit()}") from None
        except (OSError, SyntaxError) as error:
            raise ValueError(f"the JPEG is broken: {error}") from None

    def places(self, width, height):
        """Asked before the pixels are decoded: a small file may claim very many."""
        places = cutting.windows(width, height, self.tile, self.overlap)
        if len(places) > self.most:
            raise ValueError(
                f"the picture of {width} x {height} pixels is too large: {self.limit()}, and it "
                f"makes {len(places)}"
            )
        return places

    def limit(self):
        return f"at most {self.most} tiles of {self.tile} x {self.tile} are looked at"
