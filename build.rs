//! Embeds every file of `kernels/` in the binary together with one hash over names and contents, so that a binary
//! needs no source tree and a compiled-kernel cache can be keyed by what was embedded. Needs no CUDA toolkit.

use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::{env, fs, path::Path};

fn main() {
    println!("cargo:rerun-if-changed=kernels");
    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let folder = Path::new(&root).join("kernels");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("kernels/ exists")
        .map(|entry| entry.expect("readable entry").file_name().into_string().expect("UTF-8 file name"))
        .filter(|name| name.ends_with(".cu") || name.ends_with(".cuh"))
        .collect();
    names.sort();

    let mut hash = Sha256::new();
    let mut table = String::from("&[\n");
    for name in &names {
        let path = folder.join(name);
        let text = fs::read(&path).expect("readable kernel source");
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(&text);
        writeln!(table, "    ({name:?}, include_str!({:?})),", path.display().to_string()).expect("write to string");
    }
    table.push(']');
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets OUT_DIR")).join("kernel_sources.rs");
    fs::write(out, table).expect("write kernel_sources.rs");
    println!("cargo:rustc-env=UNFLIP_KERNELS_SHA256={digest}");
}
