"""The models of the fraud and recommender load tests: ONNX files with seeded weights, and what
they are fed with.

python -m loadtests.models fraud -o fraud.onnx
python -m loadtests.models recommender -o recommender.onnx --table-mb 256
python -m loadtests.models bench fraud        what a row costs ONNX Runtime called directly
"""
