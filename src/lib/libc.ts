import { dlopen } from 'bun:ffi'

/** The few calls of the C library that Bun has no words for. None of them waits, as they are used here. */

const libraries = ['libc.so.6', `libc.musl-${process.arch === 'arm64' ? 'aarch64' : 'x86_64'}.so.1`]

/** Null where the C library is not to be had. */
let library: ReturnType<typeof load> | null | undefined

export function libc() {
  if (library === undefined) library = load()
  return library
}

function load() {
  for (const name of libraries) {
    try {
      return dlopen(name, {
        socketpair: { args: ['i32', 'i32', 'i32', 'ptr'], returns: 'i32' },
        // Their answers are long; what is sent here is short.
        sendmsg: { args: ['i32', 'ptr', 'i32'], returns: 'i32' },
        recvmsg: { args: ['i32', 'ptr', 'i32'], returns: 'i32' },
        fcntl: { args: ['i32', 'i32'], returns: 'i32' },
        fstatfs: { args: ['i32', 'ptr'], returns: 'i32' },
        madvise: { args: ['u64', 'u64', 'i32'], returns: 'i32' },
        getpeername: { args: ['i32', 'ptr', 'ptr'], returns: 'i32' },
        getsockname: { args: ['i32', 'ptr', 'ptr'], returns: 'i32' },
        setsockopt: { args: ['i32', 'i32', 'i32', 'ptr', 'i32'], returns: 'i32' },
        posix_fallocate: { args: ['i32', 'i64', 'i64'], returns: 'i32' },
        shutdown: { args: ['i32', 'i32'], returns: 'i32' },
        mknod: { args: ['ptr', 'u32', 'u64'], returns: 'i32' },
        setxattr: { args: ['ptr', 'ptr', 'ptr', 'u64', 'i32'], returns: 'i32' },
      }).symbols
    } catch {
      // The other one, then.
    }
  }
  return null
}
