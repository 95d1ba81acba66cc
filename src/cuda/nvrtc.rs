//! The seven functions of NVRTC that compiling needs, called through the library that [`probe`](super::probe) chose.
//!
//! Not through cudarc's bindings, which look for a library of their own by name and panic where there is none: what compiles must
//! be what was found, of whichever version.

use super::Error;
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

type Program = *mut c_void;

/// A loaded NVRTC.
pub struct Nvrtc {
    version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    ptx_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    ptx: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    /// Keeps the functions where they are.
    _library: Library,
}

/// A program being compiled; destroyed when dropped.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was made by `create` of the same library and is destroyed once.
        unsafe { (self.nvrtc.destroy)(&raw mut self.program) };
    }
}

impl Nvrtc {
    /// Loads the library of this name or path.
    ///
    /// # Errors
    /// The loader's words, if it cannot be loaded or is no NVRTC.
    pub fn open(path: &Path) -> Result<Self, String> {
        let told = |error: libloading::Error| {
            let mut text = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                text = source.to_string();
            }
            text
        };
        // SAFETY: loading NVIDIA's compiler runs its initialisers, which touch nothing of ours.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map_err(told)?;
        // SAFETY: the types are those of nvrtc.h, unchanged since CUDA 8; `library` outlives every symbol, in the same struct.
        unsafe {
            Ok(Self {
                version: *get(&library, c"nvrtcVersion").map_err(told)?,
                error_string: *get(&library, c"nvrtcGetErrorString").map_err(told)?,
                create: *get(&library, c"nvrtcCreateProgram").map_err(told)?,
                compile: *get(&library, c"nvrtcCompileProgram").map_err(told)?,
                ptx_size: *get(&library, c"nvrtcGetPTXSize").map_err(told)?,
                ptx: *get(&library, c"nvrtcGetPTX").map_err(told)?,
                log_size: *get(&library, c"nvrtcGetProgramLogSize").map_err(told)?,
                log: *get(&library, c"nvrtcGetProgramLog").map_err(told)?,
                destroy: *get(&library, c"nvrtcDestroyProgram").map_err(told)?,
                _library: library,
            })
        }
    }

    /// Major and minor version.
    pub fn version(&self) -> (i32, i32) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both point to an int of this frame.
        unsafe { (self.version)(&raw mut major, &raw mut minor) };
        (major, minor)
    }

    /// PTX of `source`, which may include any of `headers` (name and text).
    ///
    /// # Errors
    /// [`Error::Compile`] with NVRTC's log.
    pub fn compile(
        &self,
        file: &str,
        source: &str,
        headers: &[(&str, &str)],
        options: &[String],
    ) -> Result<String, Error> {
        let refused = |log: String| Error::Compile { file: file.into(), options: options.join(" "), log };
        let text = |text: &str| CString::new(text).map_err(|_| refused("the text has a zero byte".into()));
        let (name, source) = (text(file)?, text(source)?);
        let names = headers.iter().map(|(name, _)| text(name)).collect::<Result<Vec<_>, _>>()?;
        let texts = headers.iter().map(|(_, body)| text(body)).collect::<Result<Vec<_>, _>>()?;
        let flags = options.iter().map(|option| text(option)).collect::<Result<Vec<_>, _>>()?;
        let [names, texts, flags] = [&names, &texts, &flags].map(|list| pointers(list));
        let check = |code: c_int| if code == 0 { Ok(()) } else { Err(refused(self.words(code))) };

        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all strings end with a zero byte and live to the end of this function, as do the arrays of their addresses.
        check(unsafe {
            (self.create)(
                &raw mut program,
                source.as_ptr(),
                name.as_ptr(),
                headers.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        let made = Compilation { nvrtc: self, program };
        // SAFETY: as above.
        let code = unsafe { (self.compile)(made.program, flags.len() as c_int, flags.as_ptr()) };
        if code != 0 {
            let log = self.text(&made, self.log_size, self.log).unwrap_or_default();
            let log = log.trim();
            return Err(refused(if log.is_empty() { self.words(code) } else { log.to_owned() }));
        }
        self.text(&made, self.ptx_size, self.ptx).map_err(|code| refused(self.words(code)))
    }

    /// A text of the program: its size, then its bytes.
    fn text(
        &self,
        made: &Compilation<'_>,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        read: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Result<String, c_int> {
        let mut length = 0_usize;
        // SAFETY: the program is alive; `length` is of this frame.
        match unsafe { size(made.program, &raw mut length) } {
            0 => {}
            code => return Err(code),
        }
        let mut bytes = vec![0_u8; length.max(1)];
        // SAFETY: the buffer has the size that NVRTC asked for.
        match unsafe { read(made.program, bytes.as_mut_ptr().cast()) } {
            0 => {}
            code => return Err(code),
        }
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    fn words(&self, code: c_int) -> String {
        // SAFETY: NVRTC returns a static string for every code.
        unsafe { CStr::from_ptr((self.error_string)(code)) }.to_string_lossy().into_owned()
    }
}

/// # Safety
/// `T` is the type of the function of this name.
unsafe fn get<T>(library: &Library, name: &CStr) -> Result<Symbol<T>, libloading::Error> {
    // SAFETY: the caller's promise.
    unsafe { library.get(name.to_bytes_with_nul()) }
}

fn pointers(list: &[CString]) -> Vec<*const c_char> {
    list.iter().map(|text| text.as_ptr()).collect()
}
