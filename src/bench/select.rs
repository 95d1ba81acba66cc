//! Which benchmarks run at which sizes: `-b NAME` and `-a axis=values`, values as lists `1,5,24` and ranges `1024:4096:256`.

use super::Provider;
use crate::Error;
use crate::ops::Pass;
use crate::ops::case::Benchmark;

/// Most sizes that one benchmark runs at: a range with a wrong step is not a wish.
const MOST_POINTS: usize = 10_000;

/// What to run; empty lists stand for the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Names of benchmarks.
    pub names: Vec<String>,
    /// Sizes, by axis, in the order given.
    pub axes: Vec<(String, Vec<usize>)>,
    /// Directions.
    pub passes: Vec<Pass>,
    /// Who computes.
    pub providers: Vec<Provider>,
}

impl Selection {
    /// Reads arguments: names, and axes as `axis=values`; the axes `pass` and `provider` take names.
    ///
    /// # Errors
    /// Something that is neither a size, a list nor a range; an unknown pass; a provider that this machine or build lacks.
    pub fn parse(names: &[String], axes: &[String]) -> Result<Self, Error> {
        let mut selection = Self { names: names.to_vec(), ..Self::default() };
        for text in axes {
            let Some((axis, values)) = text.split_once('=') else {
                return Err(usage(format!("-a expects axis=values, found `{text}`"), None));
            };
            match axis {
                "pass" => selection.passes = values.split(',').map(pass).collect::<Result<_, _>>()?,
                "provider" if values == "all" => selection.providers = Provider::available(),
                "provider" => selection.providers = values.split(',').map(Provider::parse).collect::<Result<_, _>>()?,
                _ => selection.axes.push((axis.to_owned(), sizes(axis, values)?)),
            }
        }
        Ok(selection)
    }

    /// Whether a benchmark runs.
    pub fn takes(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|asked| asked == name)
    }

    /// The sizes that a benchmark runs at: its own, with every axis that was given replaced by each of its values.
    ///
    /// # Errors
    /// More sizes than anyone would wait for.
    pub fn points<C>(&self, benchmark: &Benchmark<C>) -> Result<Vec<Vec<usize>>, Error> {
        let mut points: Vec<Vec<usize>> = benchmark.points.iter().map(|point| point.to_vec()).collect();
        for (axis, values) in &self.axes {
            let Some(column) = benchmark.axes.iter().position(|name| name == axis) else { continue };
            if points.len().saturating_mul(values.len()) > MOST_POINTS {
                let message = format!("{} would run at more than {MOST_POINTS} sizes", benchmark.name);
                return Err(usage(message, Some("widen the steps of -a".into())));
            }
            points = points
                .iter()
                .flat_map(|point| {
                    values.iter().map(|&value| {
                        let mut point = point.clone();
                        point[column] = value;
                        point
                    })
                })
                .collect();
        }
        // Sizes that differed in a replaced axis alone are one now.
        let mut distinct: Vec<Vec<usize>> = Vec::new();
        for point in points {
            if !distinct.contains(&point) {
                distinct.push(point);
            }
        }
        Ok(distinct)
    }

    /// The directions of a benchmark that run.
    pub fn passes<C>(&self, benchmark: &Benchmark<C>) -> Vec<Pass> {
        let asked = |pass: &&Pass| self.passes.is_empty() || self.passes.contains(pass);
        benchmark.passes.iter().filter(asked).copied().collect()
    }

    /// Whether every name and axis belongs to something: `known` are (name, axes) of all benchmarks.
    ///
    /// # Errors
    /// An unknown name; an axis that no chosen benchmark has.
    pub fn check(&self, known: &[(&str, &[&str])]) -> Result<(), Error> {
        for name in &self.names {
            if !known.iter().any(|(known, _)| known == name) {
                let names = known.iter().map(|(name, _)| *name);
                return Err(usage(unknown("benchmark", name, names), Some("`unflip bench --list` shows them".into())));
            }
        }
        let chosen = || known.iter().filter(|(name, _)| self.takes(name)).flat_map(|(_, axes)| axes.iter().copied());
        for (axis, _) in &self.axes {
            if !chosen().any(|known| known == axis) {
                let names = chosen().chain(["pass", "provider"]);
                return Err(usage(unknown("axis", axis, names), Some("`unflip bench --list` shows them".into())));
            }
        }
        Ok(())
    }
}

/// A message that names the nearest known word.
fn unknown<'a>(what: &str, found: &str, known: impl Iterator<Item = &'a str>) -> String {
    let nearest = known.max_by(|a, b| strsim::jaro_winkler(a, found).total_cmp(&strsim::jaro_winkler(b, found)));
    let nearest = nearest.map_or_else(String::new, |nearest| format!("; the nearest is `{nearest}`"));
    format!("there is no {what} `{found}`{nearest}")
}

pub(super) fn usage(message: String, hint: Option<String>) -> Error {
    Error::Usage { message, hint }
}

fn pass(text: &str) -> Result<Pass, Error> {
    let found = Pass::ALL.into_iter().find(|pass| pass.name() == text);
    found.ok_or_else(|| usage(format!("pass must be forward or backward, found `{text}`"), None))
}

/// `5`, `1,2,3`, `1024:4096:256`, and lists of these.
fn sizes(axis: &str, text: &str) -> Result<Vec<usize>, Error> {
    let wrong = || {
        let message = format!("-a {axis} expects sizes like 420, 1,5,24 or 1024:4096:256, found `{text}`");
        usage(message, None)
    };
    let mut values = Vec::new();
    for part in text.split(',') {
        let ends: Vec<usize> =
            part.split(':').map(|size| size.trim().parse().map_err(|_| wrong())).collect::<Result<_, _>>()?;
        match ends[..] {
            [size] => values.push(size),
            [first, last] if first <= last => values.extend((first..=last).take(MOST_POINTS + 1)),
            [first, last, step] if first <= last && step > 0 => {
                values.extend((first..=last).step_by(step).take(MOST_POINTS + 1));
            }
            _ => return Err(wrong()),
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POINTS: Benchmark<()> = Benchmark {
        name: "norm",
        axes: &["rows", "n"],
        points: &[&[420, 640], &[420, 2560]],
        passes: &Pass::ALL,
        case: |_| None,
    };

    fn parse(axes: &[&str]) -> Result<Selection, Error> {
        Selection::parse(&[], &axes.iter().map(|&axis| axis.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn axes_take_sizes_lists_and_ranges() {
        let found = parse(&["rows=1,5:7,1024:4096:1024", "pass=backward", "provider=reference"]).unwrap();
        assert_eq!(found.axes, [("rows".to_owned(), vec![1, 5, 6, 7, 1024, 2048, 3072, 4096])]);
        assert_eq!((found.passes, found.providers), (vec![Pass::Backward], vec![Provider::Reference]));
        for wrong in
            ["rows", "rows=", "rows=x", "rows=7:5", "rows=1:9:0", "rows=1:2:3:4", "pass=both", "provider=abacus"]
        {
            let error = parse(&[wrong]).unwrap_err();
            assert!(error.is_usage() || wrong.starts_with("provider"), "{wrong}: {error}");
        }
    }

    #[test]
    fn given_axes_replace_those_of_the_points() {
        let points = |axes: &[&str]| parse(axes).unwrap().points(&POINTS).unwrap();
        assert_eq!(points(&[]), [[420, 640], [420, 2560]]);
        assert_eq!(points(&["rows=1,2"]), [[1, 640], [2, 640], [1, 2560], [2, 2560]]);
        assert_eq!(points(&["n=64", "rows=3"]), [[3, 64]]);
        assert_eq!(points(&["heads=3"]).len(), 2, "an axis of another benchmark");
        assert!(parse(&["n=1:9999", "rows=1:9999"]).unwrap().points(&POINTS).is_err());
    }

    #[test]
    fn unknown_names_and_axes_name_the_nearest() {
        let known: [(&str, &[&str]); 2] = [("norm", &["rows", "n"]), ("attention", &["heads"])];
        let mut selection = parse(&["row=1"]).unwrap();
        assert!(selection.check(&known).unwrap_err().to_string().contains("`rows`"));
        selection = parse(&["heads=1"]).unwrap();
        assert!(selection.check(&known).is_ok());
        selection.names = vec!["norm".into()];
        assert!(selection.check(&known).is_err(), "norm has no heads");
        selection.names = vec!["atention".into()];
        assert!(selection.check(&known).unwrap_err().to_string().contains("`attention`"));
    }
}
