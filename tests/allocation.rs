//! Values of a training step (activations, gradients, scratch) live in recycled memory: once steps of this size have been made, none
//! is asked of the allocator any more. What a step still allocates are lists of its operations and shapes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use unflip::bench::{StepBench, StepSettings};
use unflip::cpu::{Cpu, Isa};
use unflip::data::TraceInput;
use unflip::model::{EmbedScale, Engine, LoraSettings};
use unflip::objective::{Objective, Pairs};
use unflip::weights::{Checkpoint, Module};

/// Counts what is asked of the system's allocator while it is told to.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static BYTES: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: hands every call on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTS.load(Relaxed) {
            ALLOCATIONS.fetch_add(1, Relaxed);
            BYTES.fetch_add(layout.size(), Relaxed);
            LARGEST.fetch_max(layout.size(), Relaxed);
        }
        // SAFETY: the caller's promise, handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise, handed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Of one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allocated {
    allocations: usize,
    bytes: usize,
    largest: usize,
}

/// The least of three steps on the first group, after three to warm up. (A queue of the thread pool takes a block now and then.)
fn steady_step(model: &Path, groups: &Path, rank: usize) -> Allocated {
    let checkpoint = Checkpoint::open(model).expect("the model opens");
    let device = Cpu::new(Isa::best(), Some(2)).expect("two threads");
    let engine = Engine::open(device, &checkpoint, EmbedScale::default(), None).expect("the model loads");
    let lora = LoraSettings {
        layers: (0..engine.model.depth()).collect(),
        modules: Module::ALL.into_iter().collect(),
        rank,
        alpha: 8.0,
        rslora: false,
    };
    let objective = Objective::new("combined", Pairs::All, None).expect("a loss");
    let input = TraceInput::read(groups).expect("groups");
    let settings = StepSettings { lora, objective, lr: 1e-3, seed: 0 };
    let mut bench = StepBench::new(engine, None, &input, &settings).expect("the model takes the groups");
    let mut step = || {
        for counter in [&ALLOCATIONS, &BYTES, &LARGEST] {
            counter.store(0, Relaxed);
        }
        COUNTS.store(true, Relaxed);
        bench.train(Some(0)).expect("a step");
        COUNTS.store(false, Relaxed);
        Allocated { allocations: ALLOCATIONS.load(Relaxed), bytes: BYTES.load(Relaxed), largest: LARGEST.load(Relaxed) }
    };
    (0..6).map(|_| step()).skip(3).min_by_key(|step| step.bytes).expect("three steps")
}

#[test]
fn values_of_a_steady_step_are_not_allocated() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/text");
    let groups = goldens.join("groups.json");
    let [small, large] = [4, 64].map(|rank| steady_step(&goldens.join("model"), &groups, rank));
    println!("tiny model, rank 4: {small:?}; rank 64: {large:?}");
    // Lists have an entry per operation or block; s·u, du, dA and dB of rank 64 have sixteen times the elements.
    assert!(large.bytes < small.bytes + small.bytes / 20, "{large:?} at rank 64, {small:?} at rank 4");
    assert!(small.largest <= 16 << 10 && large.largest <= 16 << 10, "{small:?}, {large:?}");

    let Some(model) = std::env::var_os("UNFLIP_TEST_MODEL").filter(|value| !value.is_empty()) else {
        eprintln!("skipped: UNFLIP_TEST_MODEL names no Gemma 3 270M folder");
        return;
    };
    let groups = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/peer/groups_270m.json");
    let real = steady_step(Path::new(&model), &groups, 16);
    println!("Gemma 3 270M: {real:?}");
    // Its matrices have 366 rows: those of the narrowest, a branch of rank 16, take 23 KB, of a key head 375 KB.
    assert!(real.bytes < 1 << 20 && real.largest < 64 << 10, "{real:?}");
}
