//! The front end: PTX text to kernels whose statements are checked words, each with its line.
//!
//! Nothing is ignored that could change what a kernel does: an unknown directive or an operand of an unknown form is an error with
//! its line. What an instruction means is decided in [`exec`](crate::exec), which refuses unknown instructions and modifiers alike.

mod parse;
mod token;

pub(crate) use parse::type_bytes;
use std::collections::BTreeMap;
use thiserror::Error;

/// Text that is no PTX, or PTX that this device does not run.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("PTX line {line}: {message}")]
pub struct Error {
    /// From 1.
    pub line: u32,
    /// What was expected, what was found.
    pub message: String,
}

impl Error {
    pub(crate) fn new(line: u32, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// State spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Any of global, shared and local, by address.
    Generic,
    /// Device memory.
    Global,
    /// Of the CTA.
    Shared,
    /// Of the thread.
    Local,
    /// Device memory that kernels only read.
    Const,
    /// Arguments.
    Param,
}

/// A kernel's parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// As PTX names it.
    pub name: String,
    /// In the packed parameters.
    pub offset: usize,
    /// Bytes.
    pub size: usize,
    /// Bytes.
    pub align: usize,
}

/// A variable with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variable {
    /// As PTX names it.
    pub name: String,
    /// Where it lies.
    pub space: Space,
    /// Bytes; 0 of an array whose size the launch decides.
    pub bytes: usize,
    /// Bytes.
    pub align: usize,
    /// What it holds at first: nothing, or `bytes` bytes.
    pub initial: Vec<u8>,
}

/// A kernel.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Entry point.
    pub name: String,
    /// In order.
    pub parameters: Vec<Parameter>,
    /// Bytes of the packed parameters.
    pub parameter_bytes: usize,
    /// Bytes of shared memory that every launch has.
    pub static_shared: usize,
    /// Bytes of local memory of a thread.
    pub local_bytes: usize,
    /// `.maxntid`, multiplied out.
    pub max_threads: Option<u32>,
    /// Registers declared; PTX has as many as it likes.
    pub registers: usize,
    pub(crate) program: crate::exec::Program,
}

/// A module.
#[derive(Clone, Debug)]
pub struct Module {
    /// Variables in device memory, in order.
    pub variables: Vec<Variable>,
    kernels: BTreeMap<String, Kernel>,
}

impl Module {
    /// Reads a module.
    ///
    /// # Errors
    /// The first line that is no PTX, or that asks for what this device does not have.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let source = parse::module(text)?;
        let mut kernels = BTreeMap::new();
        for body in &source.kernels {
            let kernel = crate::exec::decode(body, &source)?;
            if kernels.insert(kernel.name.clone(), kernel).is_some() {
                return Err(Error::new(body.line, format!("a second kernel `{}`", body.name)));
            }
        }
        let in_memory = |variable: &&Variable| matches!(variable.space, Space::Global | Space::Const);
        Ok(Self { variables: source.variables.iter().filter(in_memory).cloned().collect(), kernels })
    }

    /// A kernel by its entry point's name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.get(name)
    }

    /// All kernels, by name.
    pub fn kernels(&self) -> impl Iterator<Item = &Kernel> {
        self.kernels.values()
    }
}

/// A module as text has it.
#[derive(Debug, Default)]
pub(crate) struct Source {
    pub variables: Vec<Variable>,
    pub kernels: Vec<Body>,
}

/// A kernel as text has it.
#[derive(Debug)]
pub(crate) struct Body {
    pub name: String,
    pub line: u32,
    pub parameters: Vec<Parameter>,
    pub max_threads: Option<u32>,
    /// Registers by their unique names, with their types.
    pub registers: BTreeMap<String, String>,
    /// Variables of the kernel.
    pub variables: Vec<Variable>,
    pub statements: Vec<Statement>,
}

/// A label or an instruction.
#[derive(Debug)]
pub(crate) enum Statement {
    Label(String),
    Instruction(Instruction),
}

/// An instruction as text has it.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    pub line: u32,
    /// Predicate register, and whether it is negated.
    pub guard: Option<(String, bool)>,
    /// The opcode's words between its dots.
    pub words: Vec<String>,
    pub operands: Vec<Operand>,
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register, a special register, a variable or a label.
    Name(String),
    /// `!name`
    Not(String),
    /// `name|name`
    Pair(String, String),
    /// An integer.
    Integer(i128),
    /// A floating-point number's bits: 32 or 64 of them.
    Float(u64, u32),
    /// `[base+offset]`; no base: an absolute address.
    Address(Option<String>, i64),
    /// `{a, b, …}`
    Vector(Vec<Operand>),
}
