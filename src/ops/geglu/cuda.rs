//! geglu on CUDA: `kernels/geglu.cu`.

use super::Geglu;
use crate::cuda::{Buf, Cuda, Element};

const THREADS: u32 = 256;

impl Geglu for Cuda {
    fn geglu(&self, gate: &Buf, up: &Buf) -> Buf {
        assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "gate and up");
        let (gate, up) = (self.in_f32(gate), self.in_f32(up));
        let y = self.buffer(gate.rows(), gate.cols(), Element::Bf16);
        let fours = (y.elements() / 4) as u32;
        let kernel = self.kernel("geglu.cu", "geglu", &[]);
        let args = [(&y).into(), (&*gate).into(), (&*up).into(), fours.into()];
        self.launch(&kernel, [fours.div_ceil(THREADS), 1, 1], [THREADS, 1, 1], 0, &args);
        y
    }
}
