//! How every figure is printed: one line with its goal and a reference of the same run.

#![allow(dead_code, clippy::print_stdout, reason = "each benchmark uses its part, and prints")]

use std::time::Duration;

/// What a figure should be.
#[derive(Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    None,
}

/// One line: name, figure, goal, reference, ratio.
pub fn figure(name: &str, value: f64, unit: &str, goal: Goal, references: &[(&str, f64)]) {
    let goal = match goal {
        Goal::AtLeast(least) => format!("goal >= {} {}", number(least), verdict(value >= least)),
        Goal::AtMost(most) => format!("goal <= {} {}", number(most), verdict(value <= most)),
        Goal::None => "no goal".into(),
    };
    let references: String = references
        .iter()
        .map(|(what, reference)| format!("; {what} {} {unit}, ratio {:.3}", number(*reference), value / reference))
        .collect();
    println!("{name}: {} {unit}; {goal}{references}", number(value));
}

/// A line that explains figures.
pub fn note(text: &str) {
    println!("    {text}");
}

/// Processor time of one item of many.
pub fn each(time: Duration, count: u64) -> String {
    format!("{:.1} us", time.as_secs_f64() * 1e6 / count.max(1) as f64)
}

/// `times` sorted; the share is in thousandths.
pub fn percentile(times: &mut [Duration], share: usize) -> Duration {
    times.sort_unstable();
    let place = times.len().saturating_sub(1) * share / 1000;
    times.get(place).copied().unwrap_or_default()
}

fn verdict(met: bool) -> &'static str {
    if met { "(met)" } else { "(NOT met)" }
}

fn number(value: f64) -> String {
    if value.abs() < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
