"""Lines that stand on their heads are turned."""

import triton_python_backend_utils as pb_utils

SURE = 0.9


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        names = ("line", "width", "turned")
        tensors = (pb_utils.get_input_tensor_by_name(request, name) for name in names)
        line, widths, turned = (tensor.as_numpy() for tensor in tensors)
        upright = line.copy()
        for index, width in enumerate(widths):
            if turned[index, 1] > SURE:
                upright[index, :, :, :width] = line[index, :, ::-1, :width][..., ::-1]
        return pb_utils.InferenceResponse([pb_utils.Tensor("upright", upright)])
