from plumbing.advice import after_dpo, after_ppo


def test_after_ppo_names_a_collapse_and_an_explosion_and_nothing_else():
    def found(rewards, kl, dev=0.6):
        metrics = [{"step": i + 1, "reward": r, "kl": kl, "response_tokens": 30.0}
                   for i, r in enumerate(rewards)]
        metrics[-1]["dev_accuracy"] = dev
        return after_ppo(metrics, warmup_dev=0.5)
    assert found([0.3, 0.5, 0.7, 0.8, 0.78], kl=10) == []
    for word, sentences in [("collapsed", found([0.3, 0.8, 0.2, 0.1, 0.1], kl=10)),
                            ("Hardly a sample", found([0.0, 0.01, 0.0, 0.0, 0.0], kl=10, dev=0.5)),
                            ("exploded", found([0.3, 0.5, 0.7, 0.8, 0.8], kl=200)),
                            ("the warm-up", found([0.3, 0.5, 0.7, 0.8, 0.8], kl=10, dev=0.5))]:
        assert len(sentences) == 1 and word in sentences[0]


def test_after_dpo_names_a_fall_and_a_run_that_never_rose():
    def found(*dev):
        return after_dpo([{"dev_accuracy": x} for x in (0.5, *dev)])
    assert found(0.6, 0.7, 0.65) == []
    assert "fell from 70.0% to 55.0%" in found(0.6, 0.7, 0.55)[0]
    assert "the saved model is the warm-up" in found(0.4, 0.5)[0]
