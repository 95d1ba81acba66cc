//! Kernels from text to PTX: the embedded sources of `kernels/`, specialised by constants, compiled by NVRTC for compute_80 and kept
//! on disk.
//!
//! A file of the cache is named after the SHA-256 of all that decides its content (source, headers of `kernels/`, NVIDIA's header for
//! bf16, options, NVRTC's version), begins with the SHA-256 of the rest, and is written beside its place and renamed: two processes may
//! compile the same kernel at once, and neither reads half a file.

use super::error::Error;
use super::probe::Toolchain;
use crate::digest::{Sha256, hex, sha256};
use crate::machine::KERNELS;
use sha2::Digest as _;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What the driver finishes for the GPU that is there: the oldest architecture that the kernels run on.
pub const ARCHITECTURE: &str = "compute_80";

/// A source file of `kernels/` and the constants that it is specialised by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Program {
    /// Its name, e.g. `norm.cu`.
    pub file: &'static str,
    /// Names and values of its constants (`-DNAME=value`), in the order given.
    pub constants: Vec<(&'static str, i64)>,
}

impl Program {
    /// A program.
    pub fn new(file: &'static str, constants: &[(&'static str, i64)]) -> Self {
        Self { file, constants: constants.to_vec() }
    }

    /// The source, as embedded.
    ///
    /// # Errors
    /// [`Error::NoEntry`] for a file that is not in `kernels/`.
    pub fn source(&self) -> Result<&'static str, Error> {
        let found = KERNELS.iter().find(|(name, _)| *name == self.file).map(|(_, text)| *text);
        found.ok_or_else(|| Error::NoEntry { file: self.file.into(), entry: String::new() })
    }

    /// The options that NVRTC gets, but for include folders.
    pub fn options(&self) -> Vec<String> {
        let fixed = [format!("--gpu-architecture={ARCHITECTURE}"), "--std=c++17".into(), "-lineinfo".into()];
        let constants = self.constants.iter().map(|(name, value)| format!("-D{name}={value}"));
        fixed.into_iter().chain(constants).collect()
    }
}

/// Headers of `kernels/`, name and text.
fn headers() -> Vec<(&'static str, &'static str)> {
    KERNELS.iter().copied().filter(|(name, _)| name.ends_with(".cuh")).collect()
}

/// Compiles programs, or finds them compiled.
pub struct Compiler {
    toolchain: &'static Toolchain,
    /// Folder of PTX files; `None`: nothing is kept.
    folder: Option<PathBuf>,
    /// Of NVRTC's version and NVIDIA's header for bf16.
    identity: String,
}

impl Compiler {
    /// A compiler that keeps PTX in `folder`.
    pub fn new(toolchain: &'static Toolchain, folder: Option<PathBuf>) -> Self {
        let mut hash = Sha256::new();
        hash.update(format!("{:?}", toolchain.nvrtc.version()));
        for name in ["cuda_bf16.h", "cuda_bf16.hpp"] {
            hash.update(std::fs::read(toolchain.include.join(name)).unwrap_or_default());
        }
        Self { toolchain, folder, identity: hex(hash) }
    }

    /// NVRTC's version.
    pub fn version(&self) -> (i32, i32) {
        self.toolchain.nvrtc.version()
    }

    /// PTX of a program.
    ///
    /// # Errors
    /// [`Error::NoEntry`] for a file that is not embedded, [`Error::Compile`] with NVRTC's log.
    pub fn ptx(&self, program: &Program) -> Result<String, Error> {
        let source = program.source()?;
        self.compile(program.file, source, &program.options())
    }

    /// PTX of a text under these options.
    ///
    /// # Errors
    /// [`Error::Compile`] with NVRTC's log.
    pub fn compile(&self, name: &str, source: &str, options: &[String]) -> Result<String, Error> {
        let headers = headers();
        let path = self.folder.as_ref().map(|folder| folder.join(self.key(source, &headers, options) + ".ptx"));
        if let Some(ptx) = path.as_deref().and_then(read) {
            return Ok(ptx);
        }
        let mut flags = options.to_vec();
        flags.push(format!("-I{}", self.toolchain.include.display()));
        let ptx = self.toolchain.nvrtc.compile(name, source, &headers, &flags)?;
        if let Some(path) = path
            && let Err(error) = write(&path, &ptx)
        {
            // Compiling again costs a second; a folder that cannot be written is no reason to compute nothing.
            tracing::warn!("{error}: kernels will be compiled again");
        }
        Ok(ptx)
    }

    fn key(&self, source: &str, headers: &[(&str, &str)], options: &[String]) -> String {
        let mut text = format!("{}\0{}\0{source}\0", self.identity, options.join("\0"));
        for (name, body) in headers {
            // Writing to a string cannot fail.
            let _ = write!(text, "{name}\0{body}\0");
        }
        sha256(text.as_bytes())
    }
}

/// The PTX of a file that is whole.
fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let (checksum, ptx) = text.split_once('\n')?;
    if checksum.strip_prefix("// ")? == sha256(ptx.as_bytes()) {
        return Some(ptx.into());
    }
    tracing::warn!(file = %path.display(), "replacing a compiled kernel that is not whole");
    None
}

fn write(path: &Path, ptx: &str) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let io = |action: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |source: std::io::Error| Error::Io { action, path, source }
    };
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let file = tempfile::Builder::new().suffix(".tmp").tempfile_in(folder).map_err(io("write to", folder))?;
    let text = format!("// {}\n{ptx}", sha256(ptx.as_bytes()));
    std::fs::write(file.path(), text).map_err(io("write", path))?;
    file.persist(path).map_err(|error| io("write", path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::probe;

    const SOURCE: &str =
        "#include <cuda_bf16.h>\nextern \"C\" __global__ void twice(__nv_bfloat16* x) { x[N] = x[N] + x[N]; }\n";

    fn options(n: i64) -> Vec<String> {
        Program::new("test.cu", &[("N", n)]).options()
    }

    #[test]
    fn a_file_is_taken_only_if_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/one.ptx");
        write(&path, ".version 8.0\n").unwrap();
        assert_eq!(read(&path).as_deref(), Some(".version 8.0\n"));
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 3]).unwrap();
        assert_eq!(read(&path), None);
        assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 1, "no temporary files");
    }

    #[test]
    fn compiled_once_and_found_again_and_errors_carry_the_log() {
        let Ok(toolchain) = probe::toolchain() else {
            eprintln!("skipped: no NVRTC here (tools/get_nvrtc fetches it)");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let compiler = Compiler::new(toolchain, Some(folder.path().join("ptx")));
        let ptx = compiler.compile("test.cu", SOURCE, &options(3)).unwrap();
        assert!(ptx.contains(".entry twice") && ptx.contains(".target sm_80"), "{ptx}");
        assert_eq!(compiler.compile("test.cu", SOURCE, &options(3)).unwrap(), ptx);
        let files = || std::fs::read_dir(folder.path().join("ptx")).unwrap().count();
        assert_eq!(files(), 1);
        compiler.compile("test.cu", SOURCE, &options(4)).unwrap();
        assert_eq!(files(), 2, "other constants are another program");
        let error = compiler.compile("broken.cu", "int f( {", &options(1)).expect_err("a syntax error");
        assert!(error.to_string().contains("broken.cu(1): error"), "{error}");
    }
}
