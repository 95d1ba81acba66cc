//! Writing safetensors files, byte for byte as the format's reference writer does.
//!
//! Tensors are sorted by dtype, wider first, then by name; the header is padded with spaces to eight bytes. Data is
//! streamed, so that a model larger than memory can be written tensor by tensor. The file appears whole or not at all.

use super::{Dtype, Error, atomic, header::HEADER_LIMIT};
use serde_json::{Map, Value, json};
use std::{
    io::{self, Write},
    path::Path,
};

/// Name, dtype and shape of a tensor to write.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Name to store.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

/// Writes tensors (name, dtype, row-major shape, little-endian bytes) with the metadata `{"format": "pt"}`, which
/// transformers and PEFT ask for.
///
/// # Errors
/// [`Error::Unwritable`] for a repeated or reserved name and for bytes that do not fit shape and dtype; [`Error::Io`].
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Result<(), Error> {
    let path = path.as_ref();
    let spec = |&(name, dtype, shape, _): &(&str, Dtype, &[usize], &[u8])| TensorSpec {
        name: name.into(),
        dtype,
        shape: shape.to_vec(),
    };
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    write_safetensors_streamed(path, &specs, &[("format", "pt")], |index, out| {
        out.write_all(tensors[index].3).map_err(|source| Error::io("write", path, source))
    })
}

/// As [`write_safetensors`], with `fill(index, out)` called once for each tensor, in the order of the file, to write
/// the data of `specs[index]`; and with metadata, stored in the order given.
///
/// # Errors
/// Also whatever `fill` gives; nothing is left at `path` then that was not there before.
pub fn write_safetensors_streamed<E: From<Error>>(
    path: impl AsRef<Path>,
    specs: &[TensorSpec],
    metadata: &[(&str, &str)],
    mut fill: impl FnMut(usize, &mut dyn Write) -> Result<(), E>,
) -> Result<(), E> {
    let path = path.as_ref();
    let (header, order) = layout(path, specs, metadata)?;
    atomic::write_file(path, |out| {
        let io = |source| E::from(Error::io("write", path, source));
        out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        out.write_all(&header).map_err(io)?;
        for (index, length) in order {
            let mut counted = Counted { out: &mut *out, written: 0 };
            fill(index, &mut counted)?;
            if counted.written != length as u64 {
                let TensorSpec { name, dtype, shape } = &specs[index];
                let (dtype, written) = (dtype.name(), counted.written);
                let reason =
                    format!("tensor `{name}` of shape {shape:?} and dtype {dtype} is {length} bytes, got {written}");
                return Err(E::from(Error::Unwritable { file: path.display().to_string(), reason }));
            }
        }
        Ok(())
    })
}

/// The padded header, and index and length in bytes of each tensor in the order of the file.
type Layout = (Vec<u8>, Vec<(usize, usize)>);

/// Lays the file out.
fn layout(path: &Path, specs: &[TensorSpec], metadata: &[(&str, &str)]) -> Result<Layout, Error> {
    let unwritable = |reason: String| Error::Unwritable { file: path.display().to_string(), reason };
    let width = |spec: &TensorSpec| Dtype::ALL.iter().position(|&dtype| dtype == spec.dtype);
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by(|&left, &right| {
        let (left, right) = (&specs[left], &specs[right]);
        width(right).cmp(&width(left)).then_with(|| left.name.cmp(&right.name))
    });

    let mut header = Map::new();
    if !metadata.is_empty() {
        let strings: Map<String, Value> = metadata.iter().map(|&(key, value)| (key.into(), value.into())).collect();
        header.insert("__metadata__".into(), Value::Object(strings));
    }
    let mut begin = 0_usize;
    let mut lengths = Vec::with_capacity(specs.len());
    for index in order {
        let spec = &specs[index];
        let length = spec.shape.iter().try_fold(spec.dtype.size(), |size, &extent| size.checked_mul(extent));
        let Some((length, end)) = length.and_then(|length| Some((length, begin.checked_add(length)?))) else {
            return Err(unwritable(format!("tensor `{}` of shape {:?} is too large", spec.name, spec.shape)));
        };
        let entry = json!({ "dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [begin, end] });
        if spec.name == "__metadata__" || header.insert(spec.name.clone(), entry).is_some() {
            return Err(unwritable(format!("the tensor name `{}` is taken", spec.name)));
        }
        lengths.push((index, length));
        begin = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > HEADER_LIMIT {
        return Err(unwritable(format!("its header of {} bytes is beyond the format's limit", header.len())));
    }
    Ok((header, lengths))
}

/// Counts what passes through.
struct Counted<W> {
    out: W,
    written: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::SafetensorsFile;
    use safetensors::tensor::{Dtype as Reference, TensorView as ReferenceView, serialize};
    use std::collections::HashMap;

    #[test]
    fn files_are_byte_for_byte_those_of_the_reference_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("written.safetensors");
        let bytes: Vec<u8> = (0..96).collect();
        let tensors: [(&str, Dtype, &[usize], &[u8]); 7] = [
            ("layers.2", Dtype::Bf16, &[2, 3], &bytes[..12]),
            ("layers.10", Dtype::Bf16, &[2, 3], &bytes[12..24]),
            ("z", Dtype::F32, &[3], &bytes[24..36]),
            ("ids", Dtype::I64, &[1, 2], &bytes[36..52]),
            ("half", Dtype::F16, &[1], &bytes[52..54]),
            ("mask", Dtype::U8, &[3, 1], &bytes[54..57]),
            ("empty \"quoted\"", Dtype::F32, &[0, 4], &[]),
        ];
        write_safetensors(&path, &tensors).unwrap();
        let reference = |dtype| match dtype {
            Dtype::F32 => Reference::F32,
            Dtype::Bf16 => Reference::BF16,
            Dtype::F16 => Reference::F16,
            Dtype::I64 => Reference::I64,
            Dtype::U8 => Reference::U8,
        };
        let views = tensors.map(|(name, dtype, shape, bytes)| {
            (name, ReferenceView::new(reference(dtype), shape.to_vec(), bytes).unwrap())
        });
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        assert_eq!(std::fs::read(&path).unwrap(), serialize(views, Some(metadata)).unwrap());

        let file = SafetensorsFile::open(&path).unwrap();
        for (name, dtype, shape, bytes) in tensors {
            let view = file.tensor(name).unwrap();
            assert_eq!((view.dtype, view.shape.as_slice(), view.bytes()), (dtype, shape, bytes), "{name}");
        }
        assert_eq!(file.metadata()["format"], "pt");
    }

    #[test]
    fn a_failed_write_leaves_the_earlier_file_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept.safetensors");
        write_safetensors(&path, &[("a", Dtype::U8, &[3], b"abc")]).unwrap();
        let before = std::fs::read(&path).unwrap();
        for wrong in [b"ab".as_slice(), b"abcd"] {
            let error = write_safetensors(&path, &[("a", Dtype::U8, &[3], wrong)]).unwrap_err();
            assert!(matches!(error, Error::Unwritable { .. }), "{error}");
        }
        let twice: [(&str, Dtype, &[usize], &[u8]); 2] = [("a", Dtype::U8, &[0], b""), ("a", Dtype::U8, &[0], b"")];
        assert!(matches!(write_safetensors(&path, &twice), Err(Error::Unwritable { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        let error = write_safetensors(folder.path().join("no/such/x"), &[]).unwrap_err();
        assert!(matches!(error, Error::Io { action: "write", .. }), "{error}");
    }
}
