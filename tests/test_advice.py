from plumbing.advice import after_dpo, after_ppo, after_rlhf, after_self_training


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


def test_after_rlhf_names_what_the_learned_reward_did_to_the_rules_accuracy():
    def found(rewards, accuracies, step=2, smooth=1, tokens=50):
        return after_rlhf([{"step": i + 1, "reward": r, "accuracy": a, "kl": 2.0 * i,
                            "response_tokens": tokens}
                           for i, (r, a) in enumerate(zip(rewards, accuracies))],
                          {"step": step}, smooth)
    assert found([0, 1, 2, 3], [0.4, 0.6, 0.7, 0.66]) == []  # it fell by less than 5 points
    assert found([0, 3, 2, 1], [0.4, 0.7, 0.5, 0.3]) == []  # the reward fell, too
    [sentence] = found([0, 1, 2, 3], [0.4, 0.7, 0.5, 0.3])
    assert ("after step 2 (KL 2.0 nats) it rose from 1.00 to 3.00, while the rule's accuracy of "
            "the samples fell from 70.0% to 30.0%" in sentence)
    [sentence] = found([0, 1, 2], [0.5, 0.5, 0.5], step=0)
    assert "the saved model is the warm-up" in sentence
    # means of two steps: 35, 60, 40, 20%; the peak's two end with step 3
    [sentence] = found([0, 1, 2, 3, 4], [0.2, 0.5, 0.7, 0.1, 0.3], smooth=2)
    assert "after step 3 (KL 4.0 nats) it rose from 2.00 to 4.00" in sentence
    assert "fell from 60.0% to 20.0%" in sentence
    assert found([0, 1, 2, 3], [0.4, 0.9, 0.4, 0.9], smooth=2) == []
    assert found([0, 1], [0.7, 0.3], smooth=5) == []  # too few to say
    [sentence] = found([0, 1, 2, 3], [0.5] * 4, tokens=4)
    assert "exploded: 6 nats per response at step 4" in sentence


def test_after_self_training_names_too_few_right_samples_and_a_run_that_never_rose():
    """Of six steps the first and the fourth sampled, and the second and the fifth were measured."""
    def found(solved, dev):
        metrics = [{"step": i + 1} for i in range(6)]
        for m, x in zip(metrics[::3], solved):
            m["solved"] = x
        for m, x in zip(metrics[1::3], dev):
            m["dev_accuracy"] = x
        return after_self_training(metrics, warmup_dev=0.5)
    assert found([0.04, 0.05], [0.4, 0.6]) == found([0.05, 0.04], [0.6, 0.4]) == []
    [few] = found([0.049, 0.04], [0.6, 0.4])
    assert "At most 4.9% of the questions had a right sample" in few
    [never] = found([0.5, 0.02], [0.4, 0.5])
    assert "the saved model is the warm-up" in never
    assert len(found([0.0, 0.0], [0.0, 0.0])) == 2
