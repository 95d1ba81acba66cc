//! What `--device cuda` needs and whether it is here: the driver's library, NVRTC, the header for bf16, a GPU.
//!
//! Looked for without side effects on anything else and without panics; what is missing is said with how to get it. Libraries once
//! loaded stay loaded.

use super::error::{Error, Missing};
use super::nvrtc::Nvrtc;
use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdevice_attribute as Attribute};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Folder of a CUDA tool chain: NVRTC and headers, as `tools/get_nvrtc` makes it or as a toolkit's installation has them.
pub const TOOLCHAIN_VARIABLE: &str = "UNFLIP_CUDA_TOOLCHAIN";
/// The header that kernels include.
const HEADER: &str = "cuda_bf16.h";
/// Where a tool chain's libraries may lie below its folder.
const LIBRARY_FOLDERS: [&str; 6] =
    ["nvidia/cu13/lib", "nvidia/cuda_nvrtc/lib", "lib64", "lib", "targets/x86_64-linux/lib", "."];
/// Where its headers may lie.
const INCLUDE_FOLDERS: [&str; 4] =
    ["nvidia/cu13/include", "nvidia/cuda_runtime/include", "include", "targets/x86_64-linux/include"];
/// The oldest NVRTC that compiles the kernels.
const OLDEST_NVRTC: (i32, i32) = (12, 0);

/// A compiler for kernels.
pub struct Toolchain {
    pub(super) nvrtc: Nvrtc,
    /// The library that serves.
    pub library: PathBuf,
    /// Folder of the header for bf16.
    pub include: PathBuf,
}

/// What was found, for `doctor`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// CUDA version that the driver serves, e.g. `13.0`.
    pub driver: Option<String>,
    /// Version of NVRTC.
    pub nvrtc: Option<String>,
    /// Its library.
    pub nvrtc_library: Option<String>,
    /// Folder of the headers.
    pub headers: Option<String>,
    /// GPUs.
    pub devices: Vec<DeviceReport>,
    /// What `--device cuda` needs besides.
    pub missing: Vec<Missing>,
}

/// A GPU.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// The driver's name for it.
    pub name: String,
    /// Compute capability, e.g. `9.0`.
    pub compute_capability: String,
    /// Bytes of memory.
    pub memory: u64,
    /// Streaming multiprocessors.
    pub processors: i32,
}

/// The driver, loaded and initialised.
///
/// # Errors
/// What is missing.
pub fn driver() -> Result<(), Missing> {
    static DRIVER: OnceLock<Result<(), Missing>> = OnceLock::new();
    DRIVER.get_or_init(open_driver).clone()
}

fn open_driver() -> Result<(), Missing> {
    const WHAT: &str = "the NVIDIA driver's library libcuda.so.1";
    const REMEDY: &str = "install the NVIDIA driver for this machine's GPU (`nvidia-smi` works then)";
    // cudarc opens the first of these that loads, and panics where none does or a function is absent.
    let names = ["cuda", "nvcuda"].into_iter().flat_map(cudarc::get_lib_name_candidates);
    let mut reason = "not found by the loader".to_owned();
    for name in names {
        // SAFETY: loading the driver runs its initialisers, which touch nothing of ours.
        match unsafe { Library::open(Some(&name), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => {
                // SAFETY: only the symbol's presence is asked.
                if unsafe { library.get::<unsafe extern "C" fn()>(c"cuInit") }.is_err() {
                    return Err(missing(WHAT, &format!("{name} is no CUDA driver"), REMEDY));
                }
                // It stays loaded: cudarc finds it by the same name.
                std::mem::forget(library);
                return initialise(&name);
            }
            Err(error) => {
                let words = loader_words(&error);
                if !words.contains("No such file") {
                    reason = words;
                }
            }
        }
    }
    Err(missing(WHAT, &reason, REMEDY))
}

fn initialise(name: &str) -> Result<(), Missing> {
    let count = result::init().and_then(|()| result::device::get_count());
    match count {
        Ok(count) if count > 0 => Ok(()),
        Ok(_) | Err(result::DriverError(sys::CUresult::CUDA_ERROR_NO_DEVICE)) => Err(missing(
            "an NVIDIA GPU",
            &format!("the driver ({name}) sees none"),
            "check `nvidia-smi` and CUDA_VISIBLE_DEVICES; in a container start it with access to the GPU",
        )),
        Err(error) => Err(missing(
            "a working NVIDIA driver",
            &format!("{name} says {error}"),
            "check `nvidia-smi`; driver and kernel module must be of one version",
        )),
    }
}

/// NVRTC and the header for bf16.
///
/// # Errors
/// What is missing.
pub fn toolchain() -> Result<&'static Toolchain, Vec<Missing>> {
    static TOOLCHAIN: OnceLock<Result<Toolchain, Vec<Missing>>> = OnceLock::new();
    TOOLCHAIN.get_or_init(|| open_toolchain(&roots())).as_ref().map_err(Clone::clone)
}

/// Folders in which a tool chain is looked for, in order, and whether the loader's own search comes after them.
struct Roots {
    folders: Vec<PathBuf>,
    system: bool,
}

fn roots() -> Roots {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable(TOOLCHAIN_VARIABLE) {
        return Roots { folders: vec![folder], system: false };
    }
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    let fetched = crate::machine::cache_folder().map(|folder| folder.join("cuda"));
    let folders = named.chain(["/usr/local/cuda".into(), "/opt/cuda".into()]).chain(fetched).collect();
    Roots { folders, system: true }
}

fn open_toolchain(roots: &Roots) -> Result<Toolchain, Vec<Missing>> {
    let remedy =
        format!("run tools/get_nvrtc, or install the CUDA toolkit, or set {TOOLCHAIN_VARIABLE} to where it is");
    let looked = |what: &str| {
        let folders: Vec<String> = roots.folders.iter().map(|folder| folder.display().to_string()).collect();
        let system = if roots.system { ", nor by the loader" } else { "" };
        format!("{what} not found in {}{system}", folders.join(", "))
    };
    let header = (roots.folders.iter())
        .flat_map(|root| INCLUDE_FOLDERS.map(|folder| root.join(folder)))
        .chain(roots.system.then(|| PathBuf::from("/usr/include")))
        .find(|folder| folder.join(HEADER).is_file())
        .ok_or_else(|| missing(&format!("NVIDIA's header {HEADER}"), &looked("it was"), &remedy));
    const WHAT: &str = "NVIDIA's run-time compiler libnvrtc.so";
    let mut refused = None;
    let files = (roots.folders.iter()).flat_map(|root| LIBRARY_FOLDERS.map(|folder| root.join(folder)));
    let names = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    let candidates = files
        .flat_map(|folder| libraries(&folder))
        .chain(names.into_iter().filter(|_| roots.system).map(PathBuf::from));
    let nvrtc = candidates.into_iter().find_map(|path| match Nvrtc::open(&path) {
        Ok(nvrtc) if nvrtc.version() >= OLDEST_NVRTC => Some((nvrtc, path)),
        Ok(nvrtc) => {
            let (major, minor) = nvrtc.version();
            refused = Some(format!("{} is version {major}.{minor}; 12.0 or newer is needed", path.display()));
            None
        }
        Err(words) => {
            if path.is_absolute() {
                refused = Some(words);
            }
            None
        }
    });
    let nvrtc = nvrtc.ok_or_else(|| missing(WHAT, &refused.unwrap_or_else(|| looked("it was")), &remedy));
    match (nvrtc, header) {
        (Ok((nvrtc, library)), Ok(include)) => Ok(Toolchain { nvrtc, library, include }),
        (nvrtc, header) => Err([nvrtc.err(), header.err()].into_iter().flatten().collect()),
    }
}

/// Files of NVRTC in a folder, the newest first.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so")))
        .collect();
    let number = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.trim_start_matches("libnvrtc.so.")
            .split('.')
            .map(|part| part.parse::<u32>().unwrap_or(0))
            .collect::<Vec<_>>()
    };
    found.sort_by_key(|path| std::cmp::Reverse(number(path)));
    // A path relative to the current folder would be looked for by name.
    found.into_iter().filter_map(|path| std::path::absolute(path).ok()).collect()
}

/// Everything that is missing, or nothing.
///
/// # Errors
/// [`Error::Missing`] with all of it at once.
pub fn everything() -> Result<&'static Toolchain, Error> {
    match (driver(), toolchain()) {
        (Ok(()), Ok(toolchain)) => Ok(toolchain),
        (driver, toolchain) => {
            Err(Error::Missing(driver.err().into_iter().chain(toolchain.err().into_iter().flatten()).collect()))
        }
    }
}

/// What is here, for `doctor`.
pub fn report() -> Report {
    let (driver, toolchain) = (driver(), toolchain());
    let missing: Vec<Missing> =
        driver.clone().err().into_iter().chain(toolchain.as_ref().err().cloned().into_iter().flatten()).collect();
    let (mut version, mut devices) = (None, Vec::new());
    if driver.is_ok() {
        version = driver_version().map(|(major, minor)| format!("{major}.{minor}"));
        let count = result::device::get_count().unwrap_or(0);
        devices = (0..count).filter_map(device).collect();
    }
    let found = toolchain.ok();
    Report {
        driver: version,
        nvrtc: found.map(|found| {
            let (major, minor) = found.nvrtc.version();
            format!("{major}.{minor}")
        }),
        nvrtc_library: found.map(|found| found.library.display().to_string()),
        headers: found.map(|found| found.include.display().to_string()),
        devices,
        missing,
    }
}

/// The CUDA version that the driver serves.
fn driver_version() -> Option<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the driver is loaded; the number is of this frame.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    Some((version / 1000, version % 1000 / 10))
}

fn device(ordinal: i32) -> Option<DeviceReport> {
    let device = result::device::get(ordinal).ok()?;
    // SAFETY: `device` is a handle that the driver gave.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) }.ok();
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Some(DeviceReport {
        name: result::device::get_name(device).ok()?,
        compute_capability: format!("{major}.{minor}"),
        // SAFETY: as above.
        memory: unsafe { result::device::total_mem(device) }.ok()? as u64,
        processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
    })
}

fn missing(what: &str, reason: &str, remedy: &str) -> Missing {
    Missing { what: what.into(), reason: reason.into(), remedy: remedy.into() }
}

/// The loader's reason without the words around it.
pub(super) fn loader_words(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_folder_lacks_compiler_and_header_and_says_where_it_looked() {
        let folder = tempfile::tempdir().unwrap();
        let missing = open_toolchain(&Roots { folders: vec![folder.path().into()], system: false })
            .err()
            .expect("nothing is there");
        assert_eq!(missing.len(), 2);
        for (one, what) in missing.iter().zip(["libnvrtc.so", HEADER]) {
            assert!(one.what.contains(what), "{one:?}");
            assert!(one.reason.contains(&folder.path().display().to_string()), "{one:?}");
            assert!(one.remedy.contains("tools/get_nvrtc"), "{one:?}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_named_with_the_loaders_reason() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("lib")).unwrap();
        std::fs::write(folder.path().join("lib/libnvrtc.so.13"), "text").unwrap();
        std::fs::create_dir(folder.path().join("include")).unwrap();
        std::fs::write(folder.path().join("include").join(HEADER), "").unwrap();
        let missing =
            open_toolchain(&Roots { folders: vec![folder.path().into()], system: false }).err().expect("no library");
        assert_eq!(missing.len(), 1, "the header is there");
        assert!(missing[0].reason.contains("libnvrtc.so.13"), "{missing:?}");
    }

    #[test]
    fn the_newest_compiler_of_a_folder_is_tried_first() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["libnvrtc.so", "libnvrtc.so.12", "libnvrtc.so.13.0.48", "libnvrtc.so.13.5", "libnvrtc-builtins.so.13.5"]
        {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let names: Vec<String> = libraries(folder.path())
            .iter()
            .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["libnvrtc.so.13.5", "libnvrtc.so.13.0.48", "libnvrtc.so.12", "libnvrtc.so"]);
    }
}
