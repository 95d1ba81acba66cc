//! A tensor inside a mapped file: shape, dtype and bytes, kept alive by the map it points into.

use super::Error;
use memmap2::{Mmap, MmapMut};
use std::{fmt, sync::Arc};

/// Element types that the engine reads. Other safetensors dtypes are refused with the tensor's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE half precision: adapters only; refused for base weights, because Gemma 3 overflows it.
    F16,
    /// 64-bit integers: recorded token ids in goldens.
    I64,
    /// Bytes and masks.
    U8,
}

impl Dtype {
    /// All of them, in the order of the format's reference writer: wider ones last.
    pub const ALL: [Self; 5] = [Self::U8, Self::F16, Self::Bf16, Self::F32, Self::I64];

    /// Name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
            Self::F16 => "F16",
            Self::I64 => "I64",
            Self::U8 => "U8",
        }
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::I64 => 8,
            Self::U8 => 1,
        }
    }
}

/// A view of one tensor, row-major. Cloning shares the map. Data may be unaligned.
#[derive(Clone)]
pub struct TensorView {
    pub(super) map: Arc<Mmap>,
    pub(super) start: usize,
    pub(super) length: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Row-major shape.
    pub shape: Vec<usize>,
    /// Name as stored, for error messages.
    pub name: Arc<str>,
}

impl fmt::Debug for TensorView {
    /// Name, dtype and shape; never the data.
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        write!(formatter, "{} {} {:?}", self.name, self.dtype.name(), self.shape)
    }
}

impl TensorView {
    /// A view of bytes in memory, copied into a map of their own: for weights that were computed, not read. The data lie at an
    /// odd address, as a file's may: nothing may rely on alignment.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] if `bytes` is not what `shape` and `dtype` need; [`Error::Io`] without memory.
    pub fn from_bytes(name: &str, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Result<Self, Error> {
        let needed = shape.iter().try_fold(dtype.size(), |size, &extent| size.checked_mul(extent));
        if needed != Some(bytes.len()) {
            return Err(Error::SizeMismatch {
                file: "memory".into(),
                tensor: name.into(),
                shape: shape.iter().map(|&extent| extent as u64).collect(),
                dtype: dtype.name().into(),
                expected: needed.unwrap_or(usize::MAX) as u64,
                begin: 0,
                end: bytes.len() as u64,
            });
        }
        let io = |source| Error::Io { action: "allocate memory for", path: name.into(), source };
        let mut map = MmapMut::map_anon(bytes.len() + 1).map_err(io)?;
        map[1..].copy_from_slice(bytes);
        let map = Arc::new(map.make_read_only().map_err(io)?);
        Ok(Self { map, start: 1, length: bytes.len(), dtype, shape: shape.to_vec(), name: name.into() })
    }

    /// The raw little-endian bytes; no alignment is promised.
    pub fn bytes(&self) -> &[u8] {
        &self.map[self.start..self.start + self.length]
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// All elements widened to f32 (a copy: for small tensors, adapters and tests).
    pub fn to_f32(&self) -> Vec<f32> {
        let bytes = self.bytes();
        match self.dtype {
            Dtype::F32 => bytes.chunks_exact(4).map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect(),
            Dtype::Bf16 => bytes.chunks_exact(2).map(|c| half::bf16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
            Dtype::F16 => bytes.chunks_exact(2).map(|c| half::f16::from_le_bytes([c[0], c[1]]).to_f32()).collect(),
            Dtype::I64 => bytes
                .chunks_exact(8)
                .map(|c| i64::from_le_bytes(c.try_into().expect("chunks of eight bytes")) as f32)
                .collect(),
            Dtype::U8 => bytes.iter().map(|&b| f32::from(b)).collect(),
        }
    }
}
