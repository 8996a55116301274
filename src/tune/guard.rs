//! Whether what is trained learns at all. A forward that a backward does not follow makes no error message and the loss falls
//! all the same, by what the rest learns; so the first steps look at every trained tensor's gradient.

use crate::data::batch::{Row, Target};
use crate::model::layers::Grads;
use crate::model::layers::host::Host;
use crate::model::network::Network;
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

/// Steps that are looked at: a fresh pair's A learns from the second on, its B being zero before.
pub const STEPS: usize = 2;

/// Biases that nothing can depend on: a softmax over positions does not feel what is added to all of them.
const UNFELT: [&str; 3] = ["qa_outputs.bias", ".key.bias", ".k_lin.bias"];

/// Each trained tensor has a gradient that is finite and not zero throughout. `attends`: what [`attends`] says of the rows.
///
/// # Errors
/// The tensors that have none, by name.
pub fn every_weight_learns(network: &mut Network, grads: &Grads, attends: bool) -> anyhow::Result<()> {
    let mut trained: BTreeMap<String, Tensor> = BTreeMap::new();
    network.trained(&mut |name, tensor| {
        trained.insert(name, tensor.clone());
    });
    if let Some(name) = first_not_finite(grads)? {
        anyhow::bail!("the gradient of `{name}` is not finite");
    }
    let missing = names(trained.keys().filter(|name| !grads.0.contains_key(*name)));
    anyhow::ensure!(missing.is_empty(), "no gradient reached {missing}");
    let mut idle = Vec::new();
    for name in trained.keys() {
        // B at zero gives A no slope, and A at zero B none: then the other one must have it.
        let across = [("lora_A", "lora_B"), ("lora_B", "lora_A")].iter().find(|(side, _)| name.contains(side));
        let other = across.and_then(|(side, other)| trained.get(&name.replace(side, other)));
        let waits = other.map(is_zero).transpose()?.unwrap_or(false) && !is_zero(&trained[name])?;
        let unfelt = UNFELT.iter().any(|end| name.ends_with(end)) || is_of_attention(name) && !attends;
        if !waits && !unfelt && is_zero(&grads.0[name])? {
            idle.push(name);
        }
    }
    let idle = names(idle.into_iter());
    anyhow::ensure!(
        idle.is_empty(),
        "the gradient of {idle} is zero throughout: what is trained there does not reach the loss"
    );
    Ok(())
}

/// The first tensor, by name, whose gradient is infinite or no number.
pub fn first_not_finite(grads: &Grads) -> Result<Option<&str>> {
    for (name, grad) in &grads.0 {
        let grad = grad.contiguous()?;
        if Host::new(&grad)?.slice().iter().any(|g| !g.is_finite()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn is_zero(tensor: &Tensor) -> Result<bool> {
    let tensor = tensor.contiguous()?;
    Ok(Host::new(&tensor)?.slice().iter().all(|v| *v == 0.0))
}

/// Queries and keys: they say how much of each position is taken, which one position alone does not feel.
fn is_of_attention(name: &str) -> bool {
    ["q_proj", "k_proj", "query", "key", "q_lin", "k_lin", "q_norm", "k_norm"].iter().any(|part| name.contains(part))
}

/// Whether any position that is learned from sees another than itself.
pub fn attends(rows: &[&Row]) -> bool {
    rows.iter().any(|row| match &row.target {
        Target::Tokens(tokens) | Target::Answer { tokens, .. } => tokens.iter().skip(1).any(Option::is_some),
        Target::Class(_) | Target::Span { .. } | Target::Vector(_) => row.keys > 1,
        Target::None => false,
    })
}

fn names<'a>(all: impl Iterator<Item = &'a String>) -> String {
    let all: Vec<String> = all.map(|n| format!("`{n}`")).collect();
    let more = all.len().saturating_sub(4);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", all[..all.len().min(4)].join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::Task;
    use crate::model::open::Opened;
    use crate::model::peft::{self, AdapterConfig};
    use candle_core::Device;

    fn row(keys: usize) -> Row {
        let targets = (0..keys).map(|i| Some(i as u32 % 7 + 1)).collect();
        let ids = (0..keys as u32).map(|i| i % 11 + 3).collect();
        let positions = (0..keys as u32).collect();
        Row { ids, positions, types: Vec::new(), keys, target: Target::Tokens(targets), source: 0 }
    }

    fn step(row: &Row, spoil: impl FnOnce(&mut Grads)) -> anyhow::Result<()> {
        let opened = Opened::open("nano", 0)?;
        let mut network = Network::load(&opened.config, &opened.weights, Task::Generate, 0, &Device::Cpu)?;
        let target_modules = vec!["q_proj".into(), "down_proj".into()];
        peft::attach(&mut network, &AdapterConfig { r: 2, alpha: 4.0, target_modules, ..AdapterConfig::default() }, 0)?;
        let mut grads = Grads::default();
        network.loss_and_grad(&[row], 1.0, crate::model::layers::Pass::EVAL, 0, &mut grads)?;
        spoil(&mut grads);
        every_weight_learns(&mut network, &grads, attends(&[row]))
    }

    #[test]
    fn a_tensor_that_does_not_learn_is_named() {
        const B: &str = "model.layers.2.mlp.down_proj.lora_B.weight";
        step(&row(6), |_| ()).unwrap();
        let zero = |g: &mut Grads| drop(g.0.insert(B.into(), g.0[B].zeros_like().unwrap()));
        let error = step(&row(6), zero).unwrap_err().to_string();
        assert!(error.contains(&format!("the gradient of `{B}` is zero throughout")), "{error}");
        let error = step(&row(6), |g| drop(g.0.remove(B))).unwrap_err().to_string();
        assert_eq!(error, format!("no gradient reached `{B}`"));
        let infinite = |g: &mut Grads| drop(g.0.insert(B.into(), (&g.0[B] / 0.0).unwrap()));
        assert_eq!(step(&row(6), infinite).unwrap_err().to_string(), format!("the gradient of `{B}` is not finite"));
    }

    #[test]
    fn what_cannot_have_a_slope_is_let_be() {
        // The only token of a row sees only itself, whatever its query.
        step(&row(1), |g| {
            let (name, grad) = g.0.iter().find(|(n, _)| n.contains("q_proj.lora_B")).expect("a query");
            assert!(is_zero(grad).unwrap(), "{name}");
        })
        .unwrap();
    }
}
