"""A picture as the detection wants it: -1 to 1, its sides multiples of 32."""

import numpy as np
import triton_python_backend_utils as pb_utils

STRIDE = 32
LONGEST = 1600
"""Pixels of a side. Larger pictures are shrunk by a whole number."""


def prepare(image):
    """uint8 [height, width, 3] to float32 [1, 3, height, width]."""
    step = -(-max(image.shape[:2]) // LONGEST)
    small = image[::step, ::step]
    height, width = small.shape[:2]
    padded = np.pad(small, ((0, -height % STRIDE), (0, -width % STRIDE), (0, 0)), mode="edge")
    scaled = padded[..., ::-1].astype(np.float32) / 127.5 - 1
    return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])


class TritonPythonModel:
    def execute(self, requests):
        responses = []
        for request in requests:
            image = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
            if not image.size:
                error = pb_utils.TritonError(
                    "the image has no pixels", pb_utils.TritonError.INVALID_ARG
                )
                responses.append(pb_utils.InferenceResponse(error=error))
                continue
            picture = pb_utils.Tensor("picture", prepare(image))
            responses.append(pb_utils.InferenceResponse([picture]))
        return responses
