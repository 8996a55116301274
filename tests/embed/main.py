"""edgeft from Python, by nothing but ctypes. Usage: main.py LIBRARY FOLDER"""
import ctypes as c
import sys

library, folder = sys.argv[1:]
edgeft = c.CDLL(library)
edgeft.edgeft_last_error.restype = c.c_char_p
OnPiece = c.CFUNCTYPE(c.c_bool, c.c_char_p, c.c_size_t, c.c_void_p)


class Generation(c.Structure):
    _fields_ = [("text", c.c_char_p), ("text_len", c.c_size_t)]  # what stands behind them is not needed here


class Label(c.Structure):
    _fields_ = [("label", c.c_char_p), ("score", c.c_float)]


class Labels(c.Structure):
    _fields_ = [("labels", c.POINTER(Label)), ("len", c.c_size_t)]


def must(code):
    if code:
        raise RuntimeError(edgeft.edgeft_last_error().decode())


def session(file):
    model, made = c.c_void_p(), c.c_void_p()
    must(edgeft.edgeft_model_open(file.encode(), c.byref(model)))
    must(edgeft.edgeft_session_new(model, None, c.byref(made)))
    return made


done, on_piece = c.POINTER(Generation)(), OnPiece(lambda text, _, __: print(text.decode(), end="") is None)
must(edgeft.edgeft_generate(session(f"{folder}/generate.gguf"), b"the apple is", None, on_piece, None, c.byref(done)))
labels = c.POINTER(Labels)()
must(edgeft.edgeft_classify(session(f"{folder}/classify.gguf"), b"the bread was very good", c.byref(labels)))
print(f" |{done.contents.text.decode()} | {labels.contents.labels[0].label.decode()}")
