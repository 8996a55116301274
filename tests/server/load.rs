//! `edgeft bench --server` against real servers.

use super::*;
use crate::common::{Folder, has_fields};

#[test]
fn a_bench_of_servers_counts_what_they_answered_and_compares_two() {
    let slots = |n| {
        let server = Server::start(config(), move || Loaded::with_slots(&model(), &options(), n)).unwrap();
        server.ready().unwrap();
        server
    };
    let (one, four) = (slots(1), slots(4));
    let folder = Folder::new();
    let line = format!(
        "bench --server http://{} --server http://{}/v1/ --concurrency 1,3 --seconds 1 --prompt 20 --generate 8 --json",
        one.addr(),
        four.addr()
    );
    let json = folder.edgeft(&line).ok().json();
    let rows = json["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["concurrency"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 1, 3, 3]);
    for row in rows {
        has_fields(row, "concurrency requests failed ttft_ms itl_ms tokens_per_s");
        has_fields(&row["ttft_ms"], "p50 p90 p99");
        assert!(row["requests"].as_u64() > Some(2) && row["failed"] == 0, "{row}");
        assert!(row["tokens_per_s"].as_f64() > Some(1.0) && row["ttft_ms"]["p50"].as_f64() > Some(0.0), "{row}");
        assert!(row["ttft_ms"]["p50"].as_f64() <= row["ttft_ms"]["p90"].as_f64(), "{row}");
    }
    assert_eq!(json["ratios"].as_array().unwrap().len(), 2);
    let share =
        |i: usize| rows[2 * i]["tokens_per_s"].as_f64().unwrap() / rows[2 * i + 1]["tokens_per_s"].as_f64().unwrap();
    assert!((json["ratios"][1]["tokens_per_s"].as_f64().unwrap() - share(1)).abs() < 0.01, "{json}");
    // What the servers count is what was asked: 20 tokens a prompt, within the words' rounding.
    let metric = |name: &str| {
        let text = get(&one, "/metrics").body;
        let line = text.lines().find_map(|l| l.strip_prefix(name).map(str::to_owned));
        line.and_then(|l| l.trim().parse::<f64>().ok()).unwrap_or_else(|| panic!("no {name} in {text}"))
    };
    let requests = metric("edgeft_first_token_seconds_count ");
    assert!((metric("edgeft_prompt_tokens_total ") / requests - 20.0).abs() < 6.0);
    let rate = format!("bench --server http://{} --rate 20 --seconds 1 --generate 2 --prompt 4", four.addr());
    let told = folder.edgeft(&rate).ok();
    assert!(told.stdout.contains("20.0 a second") && told.stdout.contains("tokens/s"), "{told:?}");
}

#[test]
fn a_bench_of_no_server_says_why() {
    let folder = Folder::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap(); // closed again at once
    let told = folder.edgeft(&format!("bench --server http://{free} --seconds 1")).code(1);
    assert!(told.stderr.contains("cannot connect") && told.stderr.contains(&free.to_string()), "{told:?}");
    crate::cli::refuses(&folder, "bench --server https://example.org", &["https://example.org", "http://HOST:PORT"]);
    crate::cli::refuses(&folder, "bench --server http://a --concurrency 0", &["--concurrency 0", "1 to"]);
    crate::cli::refuses(&folder, "bench nano --server http://a", &["--server"]);
    crate::cli::refuses(&folder, "bench", &["MODEL"]);
}
