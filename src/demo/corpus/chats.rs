//! Short chats in the form that the chat template renders.

use super::grammar::{Scene, capitalised, polish};
use super::recall;

/// A chat of one to three exchanges, each turn between its two special tokens.
pub fn document(scene: &mut Scene) -> String {
    let mut turns = if scene.rng.chance(45) { recalled(scene) } else { talked(scene) };
    if scene.rng.chance(25) && turns.len() == 2 {
        turns.extend(talked(&mut Scene::new(super::grammar(), scene.rng)));
    }
    let mut out = String::new();
    for (i, turn) in turns.iter().enumerate() {
        let role = if i % 2 == 0 { "user" } else { "assistant" };
        out.push_str(&format!("<|im_start|>{role}\n{}<|im_end|>\n", polish(turn)));
    }
    out
}

fn talked(scene: &mut Scene) -> Vec<String> {
    let (a, b) = (scene.person(), scene.person());
    let line = *scene.rng.pick(super::grammar().list("chat"));
    if line.contains("{arc}") {
        // The story is about whom the user named, and about a friend.
        scene.bind_person("a", &a);
        scene.bind_person("b", &b);
    }
    line.split(" => ").map(|turn| scene.expand(turn)).collect()
}

/// The user tells facts and asks for one of them, or for one after the other.
fn recalled(scene: &mut Scene) -> Vec<String> {
    let grammar = super::grammar();
    let people = recall::people(grammar);
    let facts = recall::facts(scene, grammar, &people, 4);
    recall::bystanders(scene, &facts, &people);
    let mut told = Vec::new();
    for fact in &facts {
        recall::face(scene, fact);
        told.push(capitalised(&scene.line(&format!("{}.tell", recall::RELATIONS[fact.relation].name))));
    }
    let mut turns = Vec::new();
    let n = scene.rng.within(1, 2);
    for fact in scene.rng.sample(&facts, n) {
        recall::face(scene, &fact);
        let name = recall::RELATIONS[fact.relation].name;
        let ask = capitalised(&scene.line(&format!("{name}.ask")));
        turns.push(if turns.is_empty() { format!("{} {ask}", told.join(" ")) } else { ask });
        turns.push(scene.line(&format!("{name}.reply")));
    }
    turns
}
