//! `edgeft targets`: the device profiles, and where their figures are from.

use super::show;
use crate::cli::Global;
use crate::profile::Profile;
use serde_json::json;
use std::process::ExitCode;

/// Flags of `targets`.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  edgeft targets\n  edgeft targets rpi5\nNext:\n  edgeft bench model.gguf --target rpi5"
)]
pub struct TargetsArgs {
    /// Profile to show in full
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
}

/// Runs the verb.
pub fn run(args: &TargetsArgs, global: &Global) -> anyhow::Result<ExitCode> {
    match &args.name {
        Some(name) => {
            let profile = Profile::named(name)?;
            show::report(global, &serde_json::to_value(&profile)?, || detail(&profile));
        }
        None => {
            let all = Profile::all()?;
            show::report(global, &json!({ "targets": all }), || list(&all));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(all: &[Profile]) {
    let mut rows = vec![["target", "cores", "memory", "bandwidth", "device"].map(str::to_owned).to_vec()];
    for p in all {
        rows.push(vec![
            p.name.clone(),
            p.cpu.cores.to_string(),
            format!("{} MiB", p.memory.mib),
            format!("{:.1} GB/s", p.bandwidth.gb_per_s),
            p.title.clone(),
        ]);
    }
    print!("{}", show::table_with(&rows, &[0, 4]));
    println!("\nBandwidth is that of the memory bus: decoding cannot be faster than it allows.");
    println!("\nNext:\n  edgeft targets rpi5\n  edgeft bench model.gguf --target rpi5");
}

fn detail(p: &Profile) {
    println!("{}: {}\n", p.name, p.title);
    println!("  triple      {}", p.triple);
    println!("  features    {}", p.features.join(", "));
    println!("  cpu         {}; {} threads\n              {}", p.cpu.name, p.cpu.cores, p.cpu.source);
    println!("  memory      {} MiB\n              {}", p.memory.mib, p.memory.source);
    println!("  bandwidth   {} GB/s\n              {}", p.bandwidth.gb_per_s, p.bandwidth.source);
    if let Some(s) = &p.sustained {
        println!("  sustained   {} GB/s\n              {}", s.gb_per_s, s.source);
    }
    println!(
        "  measured    {}",
        if p.measured {
            "yes, figures of edgeft were measured on it"
        } else {
            "no figure of edgeft was measured on it"
        }
    );
    if !p.seen.is_empty() {
        println!("\nSeen by others, tokens/s:");
        let mut rows = vec![["model", "type", "prompt", "decode", "by"].map(str::to_owned).to_vec()];
        for s in &p.seen {
            let prompt = s.prompt_tokens_per_s.map_or("-".into(), |r| format!("{r:.1}"));
            let by = format!("{} ({})", s.engine, s.source);
            rows.push(vec![s.model.clone(), s.ty.clone(), prompt, format!("{:.1}", s.decode_tokens_per_s), by]);
        }
        print!("{}", show::table_with(&rows, &[0, 1, 4]));
    }
    println!("\nNext:\n  edgeft bench model.gguf --target {}", p.name);
}
