"""The sandbox's seccomp filter: which system calls a program may not make.

Imports nothing of fastpower: ``jail.py``, which runs without it, reads this file by its path. Refused calls fail with
EACCES. What a kernel has that is newer than this list fails with ENOSYS, as on an older kernel: libraries then take the
older call.

Numbers are of Linux's ``asm/unistd_64.h`` and ``asm-generic/unistd.h``; -1 where a machine has no such call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  #: AUDIT_ARCH_*, in the order of the columns below
_NEWEST = 470  #: the newest system call that somebody has looked at

#: name, number on x86_64, number on aarch64
_DENIED = """
# network: what a connected pair of streams does not need
socket 41 198, bind 49 200, connect 42 203, listen 50 201, accept 43 202, accept4 288 242, sendmmsg 307 269
# namespaces, mounts and roots
unshare 272 97, setns 308 268, mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51,
open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432, fspick 433 433,
mount_setattr 442 442, open_tree_attr 467 467, statmount 457 457, listmount 458 458, listns 470 470
# keys
add_key 248 217, request_key 249 218, keyctl 250 219
# memory and messages that outlive a process or escape its address-space limit
shmget 29 194, shmat 30 196, shmctl 31 195, shmdt 67 197, semget 64 190, semop 65 193, semctl 66 191,
semtimedop 220 192, msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180,
mq_unlink 241 181, mq_timedsend 242 182, mq_timedreceive 243 183, mq_notify 244 184, mq_getsetattr 245 185,
memfd_create 319 279, memfd_secret 447 447, io_setup 206 0
# other processes
ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, process_madvise 440 440,
process_mrelease 448 448, pidfd_getfd 438 438, pidfd_send_signal 424 424, kcmp 312 272, move_pages 279 239,
migrate_pages 256 238, sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274,
ioprio_set 251 30
# the kernel's own machinery
bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, io_uring_setup 425 425, io_uring_enter 426 426,
io_uring_register 427 427, personality 135 92, fanotify_init 300 262, fanotify_mark 301 263,
name_to_handle_at 303 264, open_by_handle_at 304 265, lookup_dcookie 212 18, quotactl 179 60,
quotactl_fd 443 443, acct 163 89, swapon 167 224, swapoff 168 225, reboot 169 142, sethostname 170 161,
setdomainname 171 162, init_module 175 105, finit_module 313 273, delete_module 176 106, kexec_load 246 104,
kexec_file_load 320 294, syslog 103 116, settimeofday 164 170, clock_settime 227 112, adjtimex 159 171,
clock_adjtime 305 266, vhangup 153 58, iopl 172 -1, ioperm 173 -1, modify_ldt 154 -1, nfsservctl 180 42,
uselib 134 -1, lsm_set_self_attr 460 460
"""

#: Landlock knows reading and writing, but not modes, owners, times and extended attributes. A message can carry an open
#: file, which the watch over the disk (``disk.py``) would then not find.
_LANDLOCK_DENIED = """
chmod 90 -1, fchmod 91 52, fchmodat 268 53, chown 92 -1, fchown 93 55, lchown 94 -1, fchownat 260 54,
utime 132 -1, utimes 235 -1, futimesat 261 -1, utimensat 280 88, setxattr 188 5, lsetxattr 189 6,
fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15, fremovexattr 199 16, sendmsg 46 211,
fchmodat2 452 452, setxattrat 463 463, removexattrat 466 466, file_setattr 469 469
"""

#: judged by their arguments
_JUDGED = """
clone 56 220, clone3 435 435, prlimit64 302 261, sched_setaffinity 203 122, setpriority 141 140,
socketpair 53 199, ioctl 16 29, fcntl 72 25
"""

_CLONE_NEW = 0x7E020000  #: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_IOCTLS = {  #: all others fail with ENOTTY, as they do on a plain file
    "TCGETS": 0x5401,
    "TCGETS2": 0x802C542A,
    "TIOCGWINSZ": 0x5413,
    "FIONREAD": 0x541B,
    "FIONBIO": 0x5421,
    "FIONCLEX": 0x5450,
    "FIOCLEX": 0x5451,
    "FIOASYNC": 0x5452,
    "FICLONE": 0x40049409,
}
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_KILL, _ALLOW, _ERRNO = 0x80000000, 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2

_Instruction = tuple[int, int, int, int]  #: operation, jump if true, jump if false, constant


def numbers(table: str, machine: str) -> dict[str, int]:
    """System call numbers by name, those that ``machine`` lacks left out."""
    column = 1 + list(_ARCHITECTURES).index(machine)
    lines = [line for line in table.splitlines() if not line.startswith("#")]
    rows = [row.split() for line in lines for row in line.split(",") if row.strip()]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-1"}


def number(name: str) -> int:
    """Number of a refused call on this machine, which must be one of those above."""
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call filter for {machine} ({', '.join(_ARCHITECTURES)} have one)")
    return numbers(_DENIED, machine)[name]


def denied(level: str, machine: str) -> dict[str, int]:
    """The calls that fail with EACCES whatever their arguments, name to number."""
    also = numbers(_LANDLOCK_DENIED, machine) if level == "landlock" else {}
    return {**numbers(_DENIED, machine), **also}


def judged(machine: str) -> dict[str, int]:
    """The calls that are allowed with some arguments, name to number."""
    return numbers(_JUDGED, machine)


def _fail(code: int) -> _Instruction:
    return (_RETURN, 0, 0, _ERRNO | code)


def _argument(index: int) -> _Instruction:
    """Load the low half of an argument: all arguments judged here are 32 bits wide in the kernel."""
    return (_LOAD, 0, 0, 16 + 8 * index)


def _only(index: int, values: list[int], code: int) -> list[_Instruction]:
    """Fail unless argument ``index`` is one of ``values``."""
    jumps = [(_JUMP_EQ, len(values) - i, 0, value) for i, value in enumerate(values)]
    return [_argument(index), *jumps, _fail(code)]


def _rules() -> dict[str, list[_Instruction]]:
    allow = [(_RETURN, 0, 0, _ALLOW)]
    own = _only(0, [0], errno.EACCES)  # 0 is the caller itself
    return {
        "clone": [_argument(0), (_JUMP_SET, 0, 1, _CLONE_NEW), _fail(errno.EACCES), *allow],
        "clone3": [_fail(errno.ENOSYS)],  # its flags lie in memory; the C library goes on with clone
        "prlimit64": own + allow,
        "sched_setaffinity": own + allow,
        "setpriority": own + _only(1, [0], errno.EACCES) + allow,
        # A datagram socket of a pair could still be sent to others; a stream is connected for good.
        "socketpair": [
            *_only(0, [_AF_UNIX], errno.EACCES),
            *[_argument(1), (_AND, 0, 0, _SOCK_TYPE_MASK), (_JUMP_EQ, 1, 0, _SOCK_STREAM), _fail(errno.EACCES)],
            *allow,
        ],
        "ioctl": _only(1, list(_IOCTLS.values()), errno.ENOTTY) + allow,
        "fcntl": [
            *[_argument(1), (_JUMP_EQ, 1, 0, _F_SETLEASE), (_JUMP_EQ, 0, 1, _F_NOTIFY), _fail(errno.EACCES)],
            *allow,
        ],
    }


def assemble(level: str, machine: str) -> list[_Instruction]:
    """The filter's instructions. A foreign system call table kills."""
    kill = (_RETURN, 0, 0, _KILL)
    program = [(_LOAD, 0, 0, 4), (_JUMP_EQ, 1, 0, _ARCHITECTURES[machine]), kill, (_LOAD, 0, 0, 0)]
    program += [(_JUMP_GE, 0, 1, 0x40000000), kill]  # the x32 table of x86-64
    program += [(_JUMP_GE, 0, 1, _NEWEST + 1), _fail(errno.ENOSYS)]
    for name, rule in _rules().items():
        program += [(_JUMP_EQ, 0, len(rule), judged(machine)[name]), *rule]
    for number in denied(level, machine).values():
        program += [(_JUMP_EQ, 0, 1, number), _fail(errno.EACCES)]
    return [*program, (_RETURN, 0, 0, _ALLOW)]


def install(level: str) -> None:
    """Filter this process from now on.

    Raises:
        OSError: The kernel or the machine has no such filter.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no system call filter for {machine} ({', '.join(_ARCHITECTURES)} have one)")
    program = assemble(level, machine)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    mode, none = ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.c_ulong(0)
    if libc.prctl(_PR_SET_SECCOMP, mode, header, none, none) < 0:
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def new_session_keyring() -> None:
    """Leave the caller's session keyring for an empty one: the right to read a key comes with the keyring's owner."""
    join = ctypes.c_long(1)
    # Where this fails there are no keys, or an outer filter keeps them from us and so from the program.
    ctypes.CDLL(None).syscall(ctypes.c_long(number("keyctl")), join, None)
