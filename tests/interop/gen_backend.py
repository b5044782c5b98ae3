"""Lays out the backend tests of the installed onnx package below a folder.   gen_backend.py FOLDER

FOLDER/KIND/NAME/{model.onnx, tolerance.json, test_data_set_0/{input,output}_K.pb}. KIND is `node` for the tests that the
package generates, else the name of a folder of models that it ships. Writes FOLDER/ready when it is done.
"""
import json, pathlib, shutil, sys
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.case.node import collect_testcases


def packed(value, info):
    kind, name = info.type.WhichOneof("value"), info.name
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString()
    if kind == "map_type":
        p = numpy_helper.from_dict(value, name)
    elif kind == "sequence_type":
        p = numpy_helper.from_list(value, name)
    elif kind == "optional_type":
        p = numpy_helper.from_optional(value, name)
    else:
        p = numpy_helper.from_array(np.asarray(value), name)
    return p.SerializeToString()


def generated(out):
    for case in collect_testcases():
        folder = out / "node" / case.name
        data = folder / "test_data_set_0"
        data.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(case.model.SerializeToString())
        (folder / "tolerance.json").write_text(json.dumps([case.rtol, case.atol]))
        try:
            inputs, outputs = case.data_sets[0]
            for word, values, infos in (("input", inputs, case.model.graph.input), ("output", outputs, case.model.graph.output)):
                for k, v in enumerate(values):
                    (data / f"{word}_{k}.pb").write_bytes(packed(v, infos[k]))
        except Exception as e:  # the model is still good for reading and writing
            shutil.rmtree(data)
            print(f"{case.name}: no data: {e}")


def shipped(out):
    source = pathlib.Path(onnx.__file__).parent / "backend/test/data"
    for model in sorted(source.glob("*/*/model.onnx")):
        folder = out / model.parent.parent.name / model.parent.name
        if folder.exists():
            continue  # a node test that was generated as well
        folder.mkdir(parents=True)
        shutil.copy(model, folder)
        if (model.parent / "test_data_set_0").exists():
            shutil.copytree(model.parent / "test_data_set_0", folder / "test_data_set_0")
    for model in sorted((source / "light").glob("*.onnx")):
        folder = out / "light" / model.stem
        folder.mkdir(parents=True)
        shutil.copy(model, folder / "model.onnx")


def main():
    out = pathlib.Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)
    generated(out)
    shipped(out)
    (out / "ready").write_text(onnx.__version__)


main()
