"""onnxruntime's CPU provider, with every graph optimisation."""

import onnxruntime


def load(model, image, threads, options):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Threads may spin inside a run, where it helps them, but not after it.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    feed = {session.get_inputs()[0].name: image}
    return lambda: session.run(names, feed), f"onnxruntime {onnxruntime.__version__}, all optimisations"
