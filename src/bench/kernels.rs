//! Single operations, from the cases of `ops/*/cases.rs`: verified, then timed cold and hot on every provider asked for.

use super::measure::{Flush, Patience, Times, measure};
use super::select::Selection;
use super::verify::{Expected, compute, operands};
use super::{DeviceBlock, Provider};
use crate::cpu::Cpu;
use crate::ops::case::{Benchmark, Case};
use crate::ops::reference::{Precision, Reference};
use crate::ops::{
    Cost, Pass, TrainDevice, adamw, answer_head, attention, embed, gated_linear, geglu, lora_linear, norm,
    qk_norm_rope, vocabulary,
};

/// One benchmark at one size, pass and provider.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The benchmark.
    pub benchmark: &'static str,
    /// Its axes and the size on each.
    pub axes: Vec<(&'static str, usize)>,
    /// Direction.
    pub pass: Pass,
    /// Who computed.
    pub provider: Provider,
    /// Largest error as a share of the case's bound, or what was wrong.
    pub verification: Result<f64, String>,
    /// None unless it was verified.
    pub times: Option<Times>,
    /// The contract's count.
    pub cost: Cost,
}

impl State {
    /// The sizes as `rows=420 n=640`.
    pub fn shape(&self) -> String {
        let axes: Vec<String> = self.axes.iter().map(|(axis, size)| format!("{axis}={size}")).collect();
        axes.join(" ")
    }

    /// Arguments that run this alone.
    pub fn arguments(&self) -> String {
        let axes: Vec<String> = self.axes.iter().map(|(axis, size)| format!(" -a {axis}={size}")).collect();
        let (pass, provider) = (self.pass.name(), self.provider.name());
        format!("-b {}{} -a pass={pass} -a provider={provider}", self.benchmark, axes.concat())
    }
}

/// Something to do with each operation's benchmarks, whatever their cases are.
pub trait Visit {
    /// Does it.
    ///
    /// # Errors
    /// The visitor's own.
    fn visit<C: Case>(&mut self, benchmark: Benchmark<C>) -> crate::Result<()>;
}

/// Shows every benchmark to a visitor.
///
/// # Errors
/// The visitor's own.
pub fn each(visitor: &mut impl Visit) -> crate::Result<()> {
    fn all<C: Case>(benchmarks: Vec<Benchmark<C>>, visitor: &mut impl Visit) -> crate::Result<()> {
        benchmarks.into_iter().try_for_each(|benchmark| visitor.visit(benchmark))
    }
    all(lora_linear::cases::benchmarks(), visitor)?;
    all(vocabulary::cases::benchmarks(), visitor)?;
    all(gated_linear::cases::benchmarks(), visitor)?;
    all(attention::cases::benchmarks(), visitor)?;
    all(answer_head::cases::benchmarks(), visitor)?;
    all(geglu::cases::benchmarks(), visitor)?;
    all(norm::cases::benchmarks(), visitor)?;
    all(qk_norm_rope::cases::benchmarks(), visitor)?;
    all(embed::cases::benchmarks(), visitor)?;
    all(adamw::cases::benchmarks(), visitor)
}

/// What `--list` says of a benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// Name.
    pub name: &'static str,
    /// Axes.
    pub axes: &'static [&'static str],
    /// Sizes by default.
    pub points: &'static [&'static [usize]],
    /// Directions.
    pub passes: &'static [Pass],
}

/// All benchmarks.
pub fn list() -> Vec<Listed> {
    struct Lister(Vec<Listed>);
    impl Visit for Lister {
        fn visit<C: Case>(&mut self, benchmark: Benchmark<C>) -> crate::Result<()> {
            let Benchmark { name, axes, points, passes, .. } = benchmark;
            self.0.push(Listed { name, axes, points, passes });
            Ok(())
        }
    }
    let mut lister = Lister(Vec::new());
    each(&mut lister).expect("listing cannot fail");
    lister.0
}

/// Runs what was selected; `progress` is told what is being timed.
///
/// # Errors
/// A selection that fits nothing; threads that cannot be had.
pub fn run(
    selection: &Selection,
    patience: Patience,
    block: &DeviceBlock,
    progress: &mut dyn FnMut(&str),
) -> crate::Result<Vec<State>> {
    let listed = list();
    selection.check(&listed.iter().map(|one| (one.name, one.axes)).collect::<Vec<_>>())?;
    let usual = Provider::usual();
    let asked = if selection.providers.is_empty() { &usual } else { &selection.providers };
    let mut providers = Vec::new();
    for &provider in asked {
        // A rival runs in the engine's threads.
        let (unit, isa) = provider.unit();
        providers.push((provider, Cpu::with_unit(unit, isa, Some(block.threads))?));
    }
    let mut runner = Runner { selection, patience, providers, flush: Flush::new(), states: Vec::new(), progress };
    each(&mut runner)?;
    if runner.states.is_empty() {
        let hint = Some("`unflip bench --list` shows what there is".into());
        return Err(super::select::usage("nothing is left to run at these sizes and passes".into(), hint));
    }
    Ok(runner.states)
}

struct Runner<'a> {
    selection: &'a Selection,
    patience: Patience,
    providers: Vec<(Provider, Cpu)>,
    flush: Flush,
    states: Vec<State>,
    progress: &'a mut dyn FnMut(&str),
}

impl Visit for Runner<'_> {
    fn visit<C: Case>(&mut self, benchmark: Benchmark<C>) -> crate::Result<()> {
        if !self.selection.takes(benchmark.name) {
            return Ok(());
        }
        let passes = self.selection.passes(&benchmark);
        for point in self.selection.points(&benchmark)? {
            let axes: Vec<(&'static str, usize)> = benchmark.axes.iter().copied().zip(point.iter().copied()).collect();
            let Some(case) = (point.iter().any(|&size| size > 0)).then(|| (benchmark.case)(&point)).flatten() else {
                tracing::warn!("{} has no case at {axes:?}", benchmark.name);
                continue;
            };
            for &pass in &passes {
                (self.progress)(&format!("{} {}", case.name(), pass.name()));
                let precisions: Vec<Precision> =
                    self.providers.iter().map(|(provider, _)| provider.precision()).collect();
                let expected = Expected::new(&case, pass, precisions.contains(&Precision::Bf16));
                for index in 0..self.providers.len() {
                    let (provider, _) = self.providers[index];
                    let Some((verification, times)) = self.time(&case, pass, index, &expected) else { continue };
                    let cost = case.cost(pass);
                    let axes = axes.clone();
                    self.states.push(State {
                        benchmark: benchmark.name,
                        axes,
                        pass,
                        provider,
                        verification,
                        times,
                        cost,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Runner<'_> {
    /// Verifies and times; `None` where a provider does not compute such a case.
    fn time<C: Case>(
        &mut self,
        case: &C,
        pass: Pass,
        index: usize,
        expected: &Expected,
    ) -> Option<(Result<f64, String>, Option<Times>)> {
        let (provider, cpu) = &self.providers[index];
        let (patience, flush) = (self.patience, &mut self.flush);
        let mut flush = || cpu.install(|| flush.run());
        Some(match provider {
            Provider::Reference => {
                let reference = Reference::new(Precision::F32);
                (Ok(0.0), Some(timed(&reference, case, pass, &operands(&reference, case), &patience, &mut flush)))
            }
            Provider::Cpu(..) => {
                let operands = operands(cpu, case);
                let verification = expected.verify(case, &compute(cpu, case, pass, &operands), provider.precision());
                let times = verification.is_ok().then(|| timed(cpu, case, pass, &operands, &patience, &mut flush));
                (verification, times)
            }
            #[cfg(feature = "rivals")]
            Provider::Gemm => super::rivals::time(cpu, case, pass, &expected.exact, &patience, &mut flush)?,
            #[cfg(not(feature = "rivals"))]
            Provider::Gemm => return None,
        })
    }
}

/// Times a pass.
fn timed<D: TrainDevice, C: Case>(
    device: &D,
    case: &C,
    pass: Pass,
    (inputs, d_outputs): &(Vec<D::Buf>, Vec<D::Buf>),
    patience: &Patience,
    flush: &mut dyn FnMut(),
) -> Times {
    let mut times = Times::default();
    case.timed(device, inputs, d_outputs, pass, &mut |call| times = measure(patience, flush, call));
    times
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn block() -> DeviceBlock {
        DeviceBlock::unmeasured(2)
    }

    #[test]
    fn every_benchmark_runs_verified_at_a_small_size() {
        let patience =
            Patience { min_samples: 1, max_noise: f64::INFINITY, min_time: Duration::ZERO, timeout: Duration::ZERO };
        let small = [
            "rows=3",
            "n=17",
            "in=20",
            "out=12",
            "out2=0",
            "out3=5",
            "rank=2",
            "prefix=7",
            "suffix=3",
            "phrasings=2",
            "heads=2",
        ];
        let small =
            [&small[..], &["kv_heads=1", "head_dim=8", "window=5", "hidden=24", "vocab=33", "pairs=3", "keep=1"]]
                .concat();
        let axes: Vec<String> = small.into_iter().map(str::to_owned).collect();
        let mut selection = Selection::parse(&[], &axes).unwrap();
        selection.providers = Provider::available();
        let states = run(&selection, patience, &block(), &mut |_| {}).unwrap();
        for listed in list() {
            for pass in listed.passes {
                for provider in Provider::available().into_iter().filter(|provider| *provider != Provider::Gemm) {
                    let found: Vec<&State> = states
                        .iter()
                        .filter(|state| (state.benchmark, state.pass, state.provider) == (listed.name, *pass, provider))
                        .collect();
                    assert_eq!(found.len(), 1, "{} {} {}", listed.name, pass.name(), provider.name());
                    assert!(found[0].verification.is_ok(), "{:?}", found[0]);
                    let times = found[0].times.as_ref().expect("timed");
                    assert!(times.cold.median() > 0.0 && times.hot.median() > 0.0);
                    assert!(found[0].cost.bytes > 0.0);
                }
            }
        }
    }

    #[test]
    fn arguments_name_the_state_that_they_came_from() {
        let selection = Selection::parse(&["norm".into()], &["rows=2:3".into(), "n=16".into()]).unwrap();
        let patience =
            Patience { min_samples: 1, max_noise: f64::INFINITY, min_time: Duration::ZERO, timeout: Duration::ZERO };
        let states = run(&selection, patience, &block(), &mut |_| {}).unwrap();
        assert_eq!(states.len(), 4);
        let arguments = states[3].arguments();
        let words: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let after = |flag: &str| -> Vec<String> {
            let pairs = words.chunks(2).filter(|pair| pair[0] == flag);
            pairs.map(|pair| pair[1].clone()).collect()
        };
        let again =
            run(&Selection::parse(&after("-b"), &after("-a")).unwrap(), patience, &block(), &mut |_| {}).unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!((again[0].arguments(), again[0].shape()), (arguments, "rows=3 n=16".to_owned()));
    }

    #[test]
    fn a_selection_of_nothing_is_refused() {
        let selection = Selection::parse(&["adamw".into()], &["pass=backward".into()]).unwrap();
        assert!(run(&selection, Patience::default(), &block(), &mut |_| {}).unwrap_err().is_usage());
    }
}
