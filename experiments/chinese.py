"""The tables of README.zh-CN.md are those of README.md: the same numbers, their words translated."""

from plumbing.tables import table

WORDS = {
    "words (`nl`)": "文字解答（`nl`）", "programs (`program`)": "程序解答（`program`）",
    "time": "时间", "memory": "内存", "command": "命令", "warm-up, SFT for 5 epochs": "预热：SFT 5 轮",
    "SFT, best of 40 epochs on dev": "SFT，40 轮中 dev 最好的一轮",
    "DPO, 2 epochs over about 6,000 pairs": "DPO，约 6,000 对，2 轮",
    "**ReFT**, 100 steps": "**ReFT**，100 步",
    "made by `reft_ppo.py` and `dpo.py`": "由 `reft_ppo.py` 和 `dpo.py` 生成",
    "greedy": "贪心解码", "vote of 32": "32 个样本投票", "weighted vote": "加权投票",
    "sampled in training": "训练中采样数", "warm-up": "预热", "offline self-training": "离线自训练",
    "self-training in 3 rounds": "三轮自训练", "online self-training": "在线自训练",
    "who scores": "谁打分", "learns from": "从什么学", "models in memory": "内存中的模型",
    "who samples": "谁采样", "test accuracy": "测试准确率", "sampled": "采样数",
    "time per point over the warm-up": "比预热每高一个点的时间", "self-training": "自训练",
    "RFT: 48 questions": "RFT：48 道题", "nobody": "无", "the rule": "规则",
    "the rule picks": "规则挑选", "the rule, in pairs": "规则，成对", "the rule, 1 or 0": "规则，1 或 0",
    "a model of pairs": "从偏好对学的模型", "solutions": "解答", "answers": "答案", "pairs": "偏好对",
    "48 answers": "48 个答案", "1: log pi_ref once": "1：log pi_ref 只算一次",
    "2: policy and value, reference": "2：策略和价值，参考模型",
    "3: policy and value, reference, reward": "3：策略和价值，参考模型，奖励模型",
    "2: policy, reference": "2：策略，参考模型", "warm-up, once": "预热模型，一次",
    "policy, every step": "策略，每一步", "policy, 4 a question": "策略，每题 4 个",
    "policy, 8 a question": "策略，每题 8 个"}


def translated(text):
    """A table in Chinese: what has no translation stays."""
    rows = [[WORDS.get(cell.strip(), cell.strip()) for cell in line.split("|")[1:-1]]
            for line in text.splitlines()]
    return table(rows[0], rows[2:])
