"""A file system of a program (FUSE) that keeps its files in memory; it lives in a process of its own.

Speaks just as much of the kernel's protocol as SQLite makes it need: https://docs.kernel.org/filesystems/fuse/fuse.html
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading

NAME = "fuse.walpooltest"
ROOT = 1  # the root's node
IN_HEADER = struct.Struct("=IIQQIIIHH")
ATTR = struct.Struct("=6Q10I")
INIT = struct.Struct("=4I2HIIHHI7I")

LOOKUP, FORGET, GETATTR, SETATTR, UNLINK, OPEN, READ, WRITE = 1, 2, 3, 4, 10, 14, 15, 16
STATFS, RELEASE, FSYNC, FLUSH, OPENDIR, READDIR, RELEASEDIR = 17, 18, 20, 25, 27, 28, 29
BATCH_FORGET, CREATE, INTERRUPT, INITIALISE = 42, 35, 36, 26
UNANSWERED = (FORGET, BATCH_FORGET, INTERRUPT)
AGREED_TO = (RELEASE, FSYNC, FLUSH, RELEASEDIR, READDIR)  # with nothing in the answer
SIZE_IS_SET = 1 << 3  # FATTR_SIZE
KEEP_CACHE = 1 << 1  # FOPEN_KEEP_CACHE


class Files:
    """The files by node, and the names of those that still have one."""

    def __init__(self) -> None:
        self.content: dict[int, bytearray] = {}
        self.mode: dict[int, int] = {}
        self.names: dict[str, int] = {}

    def attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o755 if node == ROOT else stat.S_IFREG | self.mode[node]
        size = len(self.content.get(node, b""))
        return ATTR.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, os.getuid(), os.getgid(), 0, 4096, 0)

    def entry(self, name: str) -> bytes:
        node = self.names.get(name)
        if node is None:
            raise OSError(errno.ENOENT, name)
        return struct.pack("=4Q2I", node, 0, 0, 0, 0, 0) + self.attributes(node)

    def create(self, name: str, mode: int) -> bytes:
        node = ROOT + 1 + len(self.content)
        self.content[node], self.mode[node], self.names[name] = bytearray(), mode & 0o777, node
        return self.entry(name) + struct.pack("=Q2I", 0, KEEP_CACHE, 0)

    def write(self, node: int, offset: int, data: bytes) -> bytes:
        content = self.content[node]
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data
        return struct.pack("=2I", len(data), 0)

    def cut(self, node: int, size: int) -> None:
        content = self.content[node]
        content.extend(bytes(max(0, size - len(content))))
        del content[size:]

    def answer(self, opcode: int, node: int, body: bytes) -> bytes:
        """Return the answer to one request of the kernel's."""
        if opcode == INITIALISE:
            return INIT.pack(7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0, *[0] * 7)
        if opcode == LOOKUP:
            return self.entry(name_in(body))
        if opcode == CREATE:
            return self.create(name_in(body[16:]), struct.unpack_from("=II", body)[1])
        if opcode == UNLINK:
            del self.names[name_in(body)]
            return b""
        if opcode == READ:
            _, offset, size = struct.unpack_from("=QQI", body)
            return bytes(self.content[node][offset : offset + size])
        if opcode == WRITE:
            _, offset, size = struct.unpack_from("=QQI", body)
            return self.write(node, offset, body[40 : 40 + size])
        if opcode == SETATTR and struct.unpack_from("=I", body)[0] & SIZE_IS_SET:
            self.cut(node, struct.unpack_from("=IIQQ", body)[3])
        return self.answer_about(opcode, node)

    def answer_about(self, opcode: int, node: int) -> bytes:
        if opcode in (GETATTR, SETATTR):
            return struct.pack("=Q2I", 0, 0, 0) + self.attributes(node)
        if opcode in (OPEN, OPENDIR):
            return struct.pack("=Q2I", 0, KEEP_CACHE, 0)
        if opcode == STATFS:
            return struct.pack("=5Q4I6I", 1 << 20, 1 << 19, 1 << 19, 1 << 20, 1 << 20, 4096, 255, 4096, *[0] * 7)
        if opcode in AGREED_TO:
            return b""
        raise OSError(errno.ENOSYS, "not in this small file system")


def name_in(body: bytes) -> str:
    return body.split(b"\0", 1)[0].decode()


def serve(device: int) -> None:
    files = Files()
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError:  # unmounted
            return
        _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
        if opcode in UNANSWERED:
            continue
        try:
            error, body = 0, files.answer(opcode, node, request[IN_HEADER.size :])
        except OSError as failure:
            error, body = -(failure.errno or errno.EIO), b""
        os.write(device, struct.pack("=IiQ", 16 + len(body), error, unique) + body)


def main() -> None:
    """Mount at the folder that is given, until standard input ends; say `mounted`, or why not."""
    folder = sys.argv[1].encode()
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        device = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        sys.stdout.write(f"{error}\n")
        return
    options = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other".encode()
    if libc.mount(b"walpool-test", folder, NAME.encode(), 0, options) != 0:
        sys.stdout.write(os.strerror(ctypes.get_errno()) + "\n")
        return
    try:
        threading.Thread(target=serve, args=(device,), daemon=True).start()
        sys.stdout.write("mounted\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        libc.umount2(folder, 2)  # MNT_DETACH


if __name__ == "__main__":
    main()
