//! Kernels on the host: their sources compiled by the C++ compiler against `include/emulate.h`.

use std::cell::RefCell;
use std::cell::UnsafeCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::{Rc, Weak};
use std::sync::{Arc, LazyLock, Mutex};

use libloading::Library;

use adw_cuda_build::HEADERS;

use crate::launch::{Address, Buffer, Error, Launch, Module, Params, Result, Runtime};

/// Bytes before and after a buffer that no kernel may change.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xA5;
/// Byte that fills fresh buffers: not-a-number in every element type, so that elements never written are seen.
const POISON: u8 = 0xFF;

/// Function that `ADW_KERNEL` makes of a kernel on the host: takes argument and configuration, returns an error message or
/// null.
type Kernel = unsafe extern "C" fn(*const c_void, *const u32) -> *const c_char;

/// Runs kernels on the host, one thread at a time.
///
/// Every launch runs twice from the same memory, with blocks and threads in opposite orders; that both leave the same
/// bytes in all buffers is part of every test that uses it. A missing barrier or two blocks that write one element show
/// up as a difference.
pub struct Emulator {
    memory: RefCell<Vec<Weak<Memory>>>,
}

struct Memory {
    // u128: aligned to 16 bytes; the first byte after the guard is aligned to 256 by `start`.
    words: UnsafeCell<Vec<u128>>,
    start: usize,
    len: usize,
}

impl Memory {
    fn new(len: usize) -> Self {
        let mut words = vec![0u128; (len + 2 * GUARD + 256).div_ceil(16)];
        let base = words.as_mut_ptr() as usize;
        let start = (base + GUARD).next_multiple_of(256) - base;
        let memory = Self { words: UnsafeCell::new(words), start, len };
        memory.all().fill(GUARD_BYTE);
        memory.bytes().fill(POISON);
        memory
    }

    #[expect(clippy::mut_from_ref, reason = "kernels write through addresses; nobody holds a slice across a launch")]
    fn all(&self) -> &mut [u8] {
        // SAFETY: the vector lives as long as `self`, is never resized, and slices of it do not outlive one statement.
        unsafe {
            let words = &mut *self.words.get();
            std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len() * 16)
        }
    }

    fn bytes(&self) -> &mut [u8] {
        &mut self.all()[self.start..self.start + self.len]
    }

    fn check_guards(&self) {
        let all = self.all();
        let outside = all[..self.start].iter().chain(&all[self.start + self.len..]);
        assert!(outside.into_iter().all(|&b| b == GUARD_BYTE), "a kernel wrote outside a buffer of {} bytes", self.len);
    }
}

/// Memory of an [`Emulator`].
pub struct EmulatedBuffer(Rc<Memory>);

impl Buffer for EmulatedBuffer {
    fn address(&self) -> Address {
        Address(self.0.bytes().as_ptr() as u64)
    }
}

impl EmulatedBuffer {
    /// Copy of the contents.
    ///
    /// # Panics
    /// If a kernel wrote outside it, or `T` does not fit its length.
    pub fn read<T: Copy>(&self) -> Vec<T> {
        self.0.check_guards();
        assert_eq!(self.0.len % size_of::<T>(), 0, "a buffer of other elements");
        let n = self.0.len / size_of::<T>();
        // SAFETY: initialised bytes, aligned to 256; callers read plain numbers.
        unsafe { std::slice::from_raw_parts(self.0.bytes().as_ptr().cast::<T>(), n) }.to_vec()
    }
}

impl Drop for EmulatedBuffer {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.0.check_guards();
        }
    }
}

impl Default for Emulator {
    fn default() -> Self {
        Self::new()
    }
}

impl Emulator {
    /// An empty memory.
    pub fn new() -> Self {
        Self { memory: RefCell::default() }
    }

    /// A buffer that holds `values`.
    pub fn upload<T: Copy>(&self, values: &[T]) -> EmulatedBuffer {
        let buffer = self.make(size_of_val(values));
        // SAFETY: plain numbers seen as bytes.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
        buffer.0.bytes().copy_from_slice(bytes);
        buffer
    }

    fn make(&self, bytes: usize) -> EmulatedBuffer {
        let memory = Rc::new(Memory::new(bytes));
        self.memory.borrow_mut().push(Rc::downgrade(&memory));
        EmulatedBuffer(memory)
    }

    fn buffers(&self) -> Vec<Rc<Memory>> {
        let mut memory = self.memory.borrow_mut();
        memory.retain(|m| m.strong_count() > 0);
        memory.iter().filter_map(Weak::upgrade).collect()
    }
}

impl Runtime for Emulator {
    type Buffer = EmulatedBuffer;

    fn alloc(&self, bytes: usize) -> Result<EmulatedBuffer> {
        Ok(self.make(bytes))
    }

    unsafe fn launch<P: Params>(&self, launch: &Launch<P>) -> Result<()> {
        let fail = |cause: String| Error::Launch { kernel: launch.kernel, cause };
        if launch.grid.contains(&0) || launch.threads > 1024 || launch.grid[1..].iter().any(|&n| n > 65535) {
            return Err(fail(format!("grid {:?} of {} threads cannot be launched", launch.grid, launch.threads)));
        }
        if launch.shared > 99 * 1024 {
            return Err(fail(format!(
                "{} bytes of shared memory, but the smallest devices have 99 KiB",
                launch.shared
            )));
        }
        let library = library(launch.module)?;
        let bytes = std::ptr::from_ref(&launch.params).cast::<u8>();
        // SAFETY: `Params` guarantees plain initialised memory.
        let params = unsafe { std::slice::from_raw_parts(bytes, size_of::<P>()) };
        let run = |order: u32| {
            let [x, y, z] = launch.grid;
            let config = [x, y, z, launch.threads, launch.shared, order, params.len() as u32];
            // SAFETY: `ADW_KERNEL` defines every kernel with this signature; the caller guarantees the addresses.
            let error = unsafe {
                let kernel = library.get::<Kernel>(launch.kernel).map_err(|e| fail(e.to_string()))?;
                kernel(params.as_ptr().cast(), config.as_ptr())
            };
            if error.is_null() {
                return Ok(());
            }
            // SAFETY: a string constant of the library, which is never unloaded.
            Err(fail(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned()))
        };
        let buffers = self.buffers();
        let copy = || buffers.iter().map(|m| m.bytes().to_vec()).collect::<Vec<_>>();
        let before = copy();
        run(0)?;
        let first = copy();
        for (memory, bytes) in buffers.iter().zip(&before) {
            memory.bytes().copy_from_slice(bytes);
        }
        run(1)?;
        if copy() != first {
            return Err(fail("the result depends on the order of threads or blocks".into()));
        }
        Ok(())
    }
}

/// Name of the compiler.
fn compiler() -> String {
    std::env::var("CXX").unwrap_or_else(|_| "c++".into())
}

/// Returns true if kernels can be emulated here. If not, writes so to stderr, so that a test that returns early is noticed.
pub fn is_available(test: &str) -> bool {
    let found = Command::new(compiler()).arg("--version").output();
    let there = found.is_ok_and(|o| o.status.success());
    if !there {
        // Straight to the file descriptor: `eprintln!` of a passing test would be captured.
        use std::io::Write;
        let _ =
            writeln!(std::io::stderr(), "SKIPPED {test}: no C++ compiler ({}), so no kernel was emulated", compiler());
    }
    there
}

fn library(module: Module) -> Result<Arc<Library>> {
    static LOADED: LazyLock<Mutex<HashMap<&'static str, Arc<Library>>>> = LazyLock::new(Mutex::default);
    let mut loaded = LOADED.lock().expect("no thread panics while it holds the lock");
    if let Some(library) = loaded.get(module.name) {
        return Ok(library.clone());
    }
    let path = compiled(module)?;
    // SAFETY: the library is compiled from this workspace's sources and has no initialisers.
    let library = unsafe { Library::new(&path) }
        .map_err(|e| Error::Unavailable(format!("cannot load {}: {e}", path.display())))?;
    let library = Arc::new(library);
    loaded.insert(module.name, library.clone());
    Ok(library)
}

/// Shared library of a module, compiled unless one of the same text is there.
fn compiled(module: Module) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    (module.source, HEADERS, compiler()).hash(&mut hasher);
    let folder = folder()?;
    let library = folder.join(format!("{}-{:016x}.so", module.name, hasher.finish()));
    if library.is_file() {
        return Ok(library);
    }
    let unavailable = |what: String| Error::Unavailable(what);
    // Aside and renamed: several test programs may compile the same source at once.
    let own = folder.join(format!("{}-{}", module.name, std::process::id()));
    std::fs::create_dir_all(&own).map_err(|e| unavailable(format!("{}: {e}", own.display())))?;
    let write = |name: &str, text: &str| {
        std::fs::write(own.join(name), text).map_err(|e| unavailable(format!("{}: {e}", own.join(name).display())))
    };
    for (name, text) in HEADERS {
        write(name, text)?;
    }
    write("kernel.cu", module.source)?;
    let output = Command::new(compiler())
        .current_dir(&own)
        .args(["-x", "c++", "-std=c++17", "-O2", "-fPIC", "-shared"])
        // glibc's checked longjmp takes a jump to another stack for a mistake.
        .args(["-U_FORTIFY_SOURCE", "-DADW_EMULATED", "-I.", "-Wall", "-Wno-unknown-pragmas"])
        .args(["-ffp-contract=off", "-o", "kernel.so", "kernel.cu"])
        .output()
        .map_err(|e| unavailable(format!("cannot start {}: {e}", compiler())))?;
    if !output.status.success() {
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(unavailable(format!("{}.cu does not compile:\n{log}", module.name)));
    }
    std::fs::rename(own.join("kernel.so"), &library).map_err(|e| unavailable(format!("{}: {e}", library.display())))?;
    let _ = std::fs::remove_dir_all(own);
    Ok(library)
}

/// Folder of compiled kernels, in the target folder beside the running program.
fn folder() -> Result<PathBuf> {
    let program = std::env::current_exe().map_err(|e| Error::Unavailable(e.to_string()))?;
    let target = program.ancestors().find(|p| p.join(".fingerprint").is_dir());
    let folder = target.map_or_else(std::env::temp_dir, Path::to_path_buf).join("cuda-emulated");
    std::fs::create_dir_all(&folder).map_err(|e| Error::Unavailable(format!("{}: {e}", folder.display())))?;
    Ok(folder)
}
