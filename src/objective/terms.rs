//! The terms of the losses and their derivatives. Two-way terms go through margins; full ones through softmax over the row.

use super::pool::Pooled;
use super::{Accuracy, Consistency, GroupLogits, GroupLoss, GroupStatistics, Objective, Pairs, Spellings};

impl Objective {
    /// Loss of one group and its gradient in every logit. Logits that are not finite make a loss that is not finite.
    pub fn evaluate(&self, group: &GroupLogits<'_>) -> GroupLoss {
        self.evaluate_pooled(group, &Spellings::single(group.yes, group.no))
    }

    /// [`Self::evaluate`] with the answers' spellings pooled; they stand for the group's own two columns. The cross-entropy over the
    /// vocabulary is then that of the pooled logit: −log of the spellings' summed probability under `logsumexp`.
    pub fn evaluate_pooled(&self, group: &GroupLogits<'_>, spellings: &Spellings) -> GroupLoss {
        let rows: Vec<&[f64]> = group.logits.chunks_exact(group.columns).collect();
        let answers: Vec<[Pooled; 2]> = rows.iter().map(|row| spellings.of(row)).collect();
        let margins: Vec<f64> = answers.iter().map(|[yes, no]| yes.logit - no.logit).collect();
        let pairs = pairs(rows.len(), self.pairs);
        let mut sum = Sum {
            group,
            spellings,
            answers: &answers,
            dmargins: vec![0.0; rows.len()],
            dlogits: vec![0.0; group.logits.len()],
            dvocabulary: Vec::new(),
        };
        // A row's softmax serves all of its pairs and its cross-entropy.
        let full = match &group.vocabulary {
            _ if !self.needs_full_vocabulary() => Vocabulary::Unread,
            None => Vocabulary::Rows(rows.iter().map(|row| softmax(row)).collect()),
            Some(statistics) => {
                let cross_of = self.vocabulary_pairs(rows.len());
                sum.dvocabulary = vec![0.0; rows.len() * (rows.len() + cross_of.len())];
                Vocabulary::Statistics(statistics, cross_of)
            }
        };
        let (mut loss, mut consistency, mut accuracy) = (0.0, 0.0, 0.0);

        if let Some((part, weight)) = self.consistency {
            let share = if pairs.is_empty() { 0.0 } else { 1.0 / pairs.len() as f64 };
            for &(i, j) in &pairs {
                consistency += share
                    * match part {
                        Consistency::Margin => sum.margin(&margins, i, j, weight * share),
                        Consistency::SymklBinary => sum.symkl_binary(&margins, i, j, weight * share),
                        Consistency::SymklFull => match &full {
                            Vocabulary::Unread => 0.0,
                            Vocabulary::Rows(p) => {
                                sum.symkl_full((rows[i], &p[i].0), (rows[j], &p[j].0), i, j, weight * share)
                            }
                            Vocabulary::Statistics(of, cross_of) if weight > 0.0 => {
                                sum.symkl_statistics(of, cross_of, i, j, weight * share)
                            }
                            Vocabulary::Statistics(..) => 0.0,
                        },
                    };
            }
            if weight > 0.0 {
                loss += weight * consistency;
            }
        }
        if let Some((part, weight)) = self.accuracy {
            for k in 0..rows.len() {
                let share = if self.accuracy_of_pairs {
                    let with_k = pairs.iter().filter(|&&(i, j)| i == k || j == k).count();
                    if with_k == 0 { 0.0 } else { with_k as f64 / pairs.len() as f64 }
                } else {
                    1.0 / rows.len() as f64
                };
                accuracy += share
                    * match part {
                        Accuracy::CeBinary => sum.ce_binary(margins[k], k, weight * share),
                        Accuracy::CeFull => match &full {
                            Vocabulary::Unread => 0.0,
                            Vocabulary::Rows(p) => sum.ce_full(p[k].1, Some(&p[k].0), k, weight * share),
                            Vocabulary::Statistics(of, _) => sum.ce_full(of.log_sum[k], None, k, weight * share),
                        },
                    };
            }
            if weight > 0.0 {
                loss += weight * accuracy;
            }
        }
        let (dlogits, dvocabulary) = sum.finish();
        GroupLoss { loss, consistency, accuracy, margins, dlogits, dvocabulary }
    }
}

/// What terms over the whole vocabulary see.
enum Vocabulary<'a> {
    /// No term that counts reads it.
    Unread,
    /// Softmax and log-sum-exp of each row.
    Rows(Vec<(Vec<f64>, f64)>),
    /// Statistics, and the pairs that they are of.
    Statistics(&'a GroupStatistics<'a>, Vec<(usize, usize)>),
}

/// Indices (i, j), i < j, of the paired phrasings.
pub(super) fn pairs(phrasings: usize, pairs: Pairs) -> Vec<(usize, usize)> {
    match pairs {
        Pairs::Original => (1..phrasings).map(|k| (0, k)).collect(),
        Pairs::All => (0..phrasings).flat_map(|i| (i + 1..phrasings).map(move |j| (i, j))).collect(),
    }
}

/// Gradients so far: each term adds its own times a factor and returns its value.
struct Sum<'a> {
    group: &'a GroupLogits<'a>,
    spellings: &'a Spellings,
    /// Yes and no of each row.
    answers: &'a [[Pooled; 2]],
    dmargins: Vec<f64>,
    dlogits: Vec<f64>,
    /// As [`GroupLoss::dvocabulary`].
    dvocabulary: Vec<f64>,
}

impl Sum<'_> {
    /// (m_i − m_j)²
    fn margin(&mut self, m: &[f64], i: usize, j: usize, factor: f64) -> f64 {
        let difference = m[i] - m[j];
        self.dmargins[i] += factor * 2.0 * difference;
        self.dmargins[j] -= factor * 2.0 * difference;
        difference * difference
    }

    /// ½(p_i − p_j)(m_i − m_j); ∂/∂m_i = ½[(p_i − p_j) + p_i(1 − p_i)(m_i − m_j)].
    fn symkl_binary(&mut self, m: &[f64], i: usize, j: usize, factor: f64) -> f64 {
        // Of two margins above zero the complements differ by as much, and keep the digits that 1 − tiny loses.
        let dp = if m[i] > 0.0 && m[j] > 0.0 { sigmoid(-m[j]) - sigmoid(-m[i]) } else { sigmoid(m[i]) - sigmoid(m[j]) };
        let dm = m[i] - m[j];
        let slope = |m: f64| sigmoid(m) * sigmoid(-m);
        self.dmargins[i] += factor * 0.5 * (dp + slope(m[i]) * dm);
        self.dmargins[j] -= factor * 0.5 * (dp + slope(m[j]) * dm);
        0.5 * dp * dm
    }

    /// ½Σ_v (p_i − p_j)Δ, Δ = z_i − z_j (the log-partition cancels); ∂/∂z_i = ½[(p_i − p_j) + p_i·(Δ − Σ p_i·Δ)].
    fn symkl_full(
        &mut self,
        (zi, pi): (&[f64], &[f64]),
        (zj, pj): (&[f64], &[f64]),
        i: usize,
        j: usize,
        factor: f64,
    ) -> f64 {
        let (mut mean_i, mut mean_j) = (0.0, 0.0);
        for v in 0..zi.len() {
            let delta = zi[v] - zj[v];
            mean_i += pi[v] * delta;
            mean_j += pj[v] * delta;
        }
        if factor > 0.0 {
            let columns = self.group.columns;
            let (before_j, from_j) = self.dlogits.split_at_mut(j * columns);
            let (di, dj) = (&mut before_j[i * columns..(i + 1) * columns], &mut from_j[..columns]);
            for v in 0..zi.len() {
                let (delta, dp) = (zi[v] - zj[v], pi[v] - pj[v]);
                di[v] += factor * 0.5 * (dp + pi[v] * (delta - mean_i));
                dj[v] -= factor * 0.5 * (dp + pj[v] * (delta - mean_j));
            }
        }
        0.5 * (mean_i - mean_j)
    }

    /// [`Self::symkl_full`] from statistics: with X_ik = Σ p_i·(z_k − c_k) the loss is ½(X_ii − X_ij − X_ji + X_jj), whose c cancel, and
    /// Σ p_i·Δ is X_ii − X_ij up to what its p_i·Δ in the gradient carries as well.
    fn symkl_statistics(
        &mut self,
        statistics: &GroupStatistics<'_>,
        cross_of: &[(usize, usize)],
        i: usize,
        j: usize,
        factor: f64,
    ) -> f64 {
        let rows = self.answers.len();
        let place = |pair| cross_of.binary_search(&pair).expect("the pairs of this objective");
        let cross = |pair| statistics.cross[place(pair)];
        let (mean_i, mean_j) = (cross((i, i)) - cross((i, j)), cross((j, i)) - cross((j, j)));
        let half = factor * 0.5;
        let mut add = |row: usize, column: usize, value: f64| {
            self.dvocabulary[row * (rows + cross_of.len()) + column] += value;
        };
        for (row, sign, mean) in [(i, half, mean_i), (j, -half, mean_j)] {
            add(row, i, sign);
            add(row, j, -sign);
            add(row, row, -sign * mean);
            add(row, rows + place((row, i)), sign);
            add(row, rows + place((row, j)), -sign);
        }
        0.5 * (mean_i - mean_j)
    }

    /// softplus(−m) if yes is right, else softplus(m).
    fn ce_binary(&mut self, m: f64, k: usize, factor: f64) -> f64 {
        let sign = if self.group.answer_yes { -1.0 } else { 1.0 };
        self.dmargins[k] += factor * sign * sigmoid(sign * m);
        softplus(sign * m)
    }

    /// −log softmax(z)[answer]; ∂/∂z = p − [answer], or less the pool's gradient.
    fn ce_full(&mut self, lse: f64, p: Option<&[f64]>, k: usize, factor: f64) -> f64 {
        let (columns, answer) = match self.group.answer_yes {
            true => (&self.spellings.yes, &self.answers[k][0]),
            false => (&self.spellings.no, &self.answers[k][1]),
        };
        if factor > 0.0 {
            let width = self.group.columns;
            let dz = &mut self.dlogits[k * width..(k + 1) * width];
            match p {
                Some(p) => dz.iter_mut().zip(p).for_each(|(d, p)| *d += factor * p),
                None => {
                    let width = self.dvocabulary.len() / self.answers.len();
                    self.dvocabulary[k * width + k] += factor;
                }
            }
            for (&column, share) in columns.iter().zip(&answer.gradient) {
                dz[column] -= factor * share;
            }
        }
        lse - answer.logit
    }

    /// Hands the margins' gradients on to their logits.
    fn finish(mut self) -> (Vec<f64>, Vec<f64>) {
        let rows = self.dlogits.chunks_exact_mut(self.group.columns).zip(self.answers).zip(self.dmargins);
        for ((row, [yes, no]), d) in rows {
            for (columns, pooled, d) in [(&self.spellings.yes, yes, d), (&self.spellings.no, no, -d)] {
                for (&column, share) in columns.iter().zip(&pooled.gradient) {
                    row[column] += d * share;
                }
            }
        }
        (self.dlogits, self.dvocabulary)
    }
}

/// Softmax and log-sum-exp of a row.
pub(super) fn softmax(z: &[f64]) -> (Vec<f64>, f64) {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut p: Vec<f64> = z.iter().map(|z| libm::exp(z - max)).collect();
    let total: f64 = p.iter().sum();
    for p in &mut p {
        *p /= total;
    }
    (p, max + libm::log(total))
}

/// log(1 + eˣ) without overflow.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + libm::log1p(libm::exp(-x.abs()))
}

/// 1/(1 + e⁻ˣ) without overflow, exact in both tails.
fn sigmoid(x: f64) -> f64 {
    let e = libm::exp(-x.abs());
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}
