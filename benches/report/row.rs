//! One figure, what it is compared with, and what it should be.

use std::fmt;

use serde_json::{Value, json};

pub(crate) struct Row {
    what: String,
    unit: &'static str,
    value: f64,
    /// The same of plain veth, or of what else the row is compared with.
    base: Option<f64>,
    target: Option<Target>,
}

#[derive(Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
    /// Of the base.
    Ratio(f64),
}

impl Row {
    pub(crate) fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), unit, value, base: None, target: None }
    }

    pub(crate) fn base(self, base: f64) -> Self {
        Self { base: Some(base), ..self }
    }

    pub(crate) fn at_least(self, bound: f64) -> Self {
        Self { target: Some(Target::AtLeast(bound)), ..self }
    }

    pub(crate) fn at_most(self, bound: f64) -> Self {
        Self { target: Some(Target::AtMost(bound)), ..self }
    }

    /// At least so much of the base.
    pub(crate) fn share(self, bound: f64) -> Self {
        Self { target: Some(Target::Ratio(bound)), ..self }
    }

    fn json(&self) -> Value {
        json!({
            "what": self.what, "unit": self.unit, "value": self.value, "base": self.base, "ratio": self.ratio(),
            "target": self.target.map(|target| target.to_string()), "reached": self.reached(1.0),
        })
    }

    /// Whether it has a target and misses it by more than a fifth, for which a check fails.
    fn is_far_off(&self) -> bool {
        self.reached(1.2) == Some(false)
    }

    fn ratio(&self) -> Option<f64> {
        self.base.map(|base| self.value / base)
    }

    fn reached(&self, leeway: f64) -> Option<bool> {
        Some(match self.target? {
            Target::AtLeast(bound) => self.value * leeway >= bound,
            Target::AtMost(bound) => self.value <= bound * leeway,
            Target::Ratio(bound) => self.ratio()? * leeway >= bound,
        })
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<66} {:>10.3} {:<10}", self.what, self.value, self.unit)?;
        if let (Some(base), Some(ratio)) = (self.base, self.ratio()) {
            write!(f, " base {base:>10.3} ratio {ratio:>6.3}")?;
        }
        if let (Some(target), Some(reached)) = (self.target, self.reached(1.0)) {
            write!(f, "  {target}: {}", if reached { "reached" } else { "MISSED" })?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |bound: &f64| (bound * 1e3).round() / 1e3;
        match self {
            Self::AtLeast(bound) => write!(f, ">= {}", short(bound)),
            Self::AtMost(bound) => write!(f, "<= {}", short(bound)),
            Self::Ratio(bound) => write!(f, "ratio >= {}", short(bound)),
        }
    }
}

pub(crate) fn json(rows: &[Row]) -> Value {
    json!({ "schema": 2, "rows": rows.iter().map(Row::json).collect::<Vec<_>>() })
}

/// What a check fails for.
pub(crate) fn missed(rows: &[Row]) -> Option<String> {
    let missed: Vec<&str> = rows.iter().filter(|row| row.is_far_off()).map(|row| row.what.as_str()).collect();
    (!missed.is_empty()).then(|| format!("missed by more than a fifth: {}", missed.join("; ")))
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn quantile(values: &mut [f64], at: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * at) as usize]
}
