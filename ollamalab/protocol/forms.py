"""Reads a field of a form (``multipart/form-data``). Pure.

Source: RFC 7578; Go's ``mime/multipart``, which takes the first of several fields of a name.
"""

from __future__ import annotations

from email.message import Message
from email.parser import BytesHeaderParser

_MOST_PARTS = 1000  #: with more, Go refuses a form
_MOST_HEAD_BYTES = 10_000  #: of one part; usual are 50
_END_OF_HEAD = b"\r\n\r\n"


def form_value(body: bytes, content_type: str, name: str) -> str:
    """Return the first value of a field; "" if there is none, or the body is no such form.

    Args:
        body: The form; parts may be large files, which are passed over without a copy.
        content_type: Its header, which tells the boundary.
        name: Of the field.
    """
    header = Message()
    header["content-type"] = content_type
    boundary = header.get_boundary()
    if header.get_content_type() != "multipart/form-data" or not boundary:
        return ""
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    end = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)
    for _ in range(_MOST_PARTS):
        begin = end + len(delimiter)
        end = body.find(delimiter, begin)
        if end < 0:
            break
        head_end = body.find(_END_OF_HEAD, begin, min(end, begin + _MOST_HEAD_BYTES))
        if head_end >= 0:
            head = BytesHeaderParser().parsebytes(body[begin:head_end].lstrip())
            if head.get_param("name", header="content-disposition") == name:
                return body[head_end + len(_END_OF_HEAD) : end].decode(errors="replace")
    return ""
