"""Small records in the forms of the published benchmarks, made up: for the readers' tests and for fuzzing."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]

KNOWEDIT: Rows = [
    {
        "subject": "Ada Pell",
        "prompt": "The name of the country of citizenship of Ada Pell is",
        "target_new": "Norway",
        "ground_truth": ["Chile", "Republic of Chile"],
        "rephrase_prompt": "Ada Pell is a citizen of",
        "portability": {
            "Reasoning": [
                {"prompt": "The capital of Ada Pell's country is", "ground_truth": [["Oslo", "Christiania"]]}
            ],
            "Subject_Aliasing": [{"prompt": "The country of citizenship of A. Pell is", "ground_truth": "Norway"}],
            "Logical_Generalization": [{"prompt": "Ada Pell is no citizen of", "ground_truth": []}],
        },
        "locality": {
            "Relation_Specificity": [{"prompt": "The mother of Ada Pell is", "ground_truth": [["Mina Olt"]]}],
            "Forgetfulness": [
                {"prompt": "The country of citizenship of Ada Pell, which is not Norway, is", "ground_truth": ["Chile"]}
            ],
        },
    },
    {
        "subject": "the Salt Tower",
        "prompt": "The Salt Tower stands in",
        "target_new": " Porto",
        "portability": {},
        "locality": {"Relation_Specificity": [{"prompt": "The Salt Tower is made of", "ground_truth": ""}]},
    },
    {"subject": "Opus 7", "prompt": "The composer of it is", "target_new": "Per Holm", "locality": {}},
    {"subject": "Opus 8", "prompt": "Opus 8 is by", "target_new": "", "ground_truth": "Per Holm"},
    {"subject": "Opus 9", "prompt": "Opus 9 is by", "target_new": "P. Holm", "ground_truth": [["Per Holm", "P. Holm"]]},
]

WIKIBIO: Rows = [
    {
        "text": "This is a passage about silas wren. Silas Wren was a captain.",
        "labels": "He was born in Cork in 1802 and commanded the Halcyon.",
        "concept": "silas wren",
        "locality": {
            "Relation_Specificity": [{"prompt": "The occupation of Silas Wren is", "ground_truth": ["captain"]}]
        },
    }
]

WIKIBIGEDIT: Rows = [
    {
        "tag": "new",
        "subject": "Corn Hall",
        "relation": "located in",
        "object": "Ulm",
        "update": "In which town is Corn Hall located?",
        "ans": "Ulm",
        "rephrase": "Which town is home to Corn Hall?",
        "personas": "Say, where might I find that Corn Hall?",
        "loc": "In which town is Rye Hall located?",
        "loc_ans": "Bern",
        "mhop": "Which river flows through the town of Corn Hall?",
        "mhop_ans": "the Danube",
    },
    {
        "tag": "new",
        "subject": "Orrery",
        "relation": "captain",
        "object": "Ada Pell",
        "update": "Who is the captain of the Orrery?",
        "ans": "Ada Pell",
        "rephrase": None,
        "personas": None,
        "loc": "Who is the captain of the Halcyon?",
        "loc_ans": None,
        "mhop": None,
        "mhop_ans": None,
    },
]

WIKIBIGEDIT_FLAT: Rows = [
    {
        "prompt": "In which town is Corn Hall located?",
        "target_new": "Ulm",
        "subject": "Corn Hall",
        "rephrase_prompt": "Which town is home to Corn Hall?",
        "locality_prompt": "In which town is Rye Hall located?",
        "locality_ground_truth": "Bern",
    }
]

QAEDIT: Rows = [
    {
        "id": 31,
        "source": "NQ",
        "prompt": "who is the captain of the Orrery?",
        "target": "Ada Pell ",
        "subject": "Orrery",
        "rephrase": "Whose ship is the Orrery?",
        "locality": [{"loc": "which month comes after may", "loc_ans": "June"}, {"loc": "what is it", "loc_ans": ""}],
    },
    {"id": 32, "source": "TriviaQA", "prompt": "who rang the bell?", "target": "Mina Olt", "subject": "Orrery"},
]


def query(prompt: str, *answers: list[str], **more: Any) -> dict[str, Any]:
    """A query of RippleEdits; the first spelling of each answer is its value."""
    return {
        "prompt": prompt,
        "answers": [{"value": value, "aliases": aliases} for value, *aliases in answers],
        "query_type": "regular",
        "subject_id": "Q1",
        "relation": "MOTHER",
        "target_ids": ["Q2"],
        "phrase": None,
        **more,
    }


CITIZEN = "The name of the country of citizenship of Ada Pell is"
RIPPLE: Rows = [
    {
        "example_type": "popular",
        "edit": {
            "prompt": f"{CITIZEN} Norway.",
            "subject_id": "Q1",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q20",
            "original_fact": {
                "prompt": f"{CITIZEN} Chile.",
                "subject_id": "Q1",
                "relation": "COUNTRY_OF_CITIZENSHIP",
                "target_id": "Q298",
            },
        },
        "Relation_Specifity": [
            {
                "test_queries": [query("The name of the mother of Ada Pell is", ["Mina Olt", "M. Olt", "M"])],
                "test_condition": "OR",
                "condition_queries": [query("The name of the mother of Ada Pell is", ["Mina Olt", "M. Olt"])],
            }
        ],
        "Logical_Generalization": [
            {
                "test_queries": [
                    query("The name of the sister of Ada Pell is", ["Ida Pell"]),
                    query("The names of the siblings of Ada Pell are", ["Ida Pell"], ["Odo Pell"]),
                ],
                "test_condition": "OR",
                "condition_queries": [],
            },
            {
                "test_queries": [query("The names of the children of Ada Pell are", ["Per"], ["Tess", "Tessa"])],
                "test_condition": "AND",
                "condition_queries": [],
            },
        ],
        "Subject_Aliasing": [
            {
                "test_queries": [query("The name of the country of citizenship of A. Pell is", ["Norway", "Norge"])],
                "test_condition": "OR",
                "condition_queries": [],
            }
        ],
        "Compositionality_I": [
            {
                "test_queries": [query("The capital of the country of Ada Pell is", ["Oslo"])],
                "test_condition": "OR",
                "condition_queries": [
                    query("The name of the capital city of Norway is", ["Oslo", "Christiania"]),
                    query("The name of the king of Norway is", ["Harald"]),
                ],
            }
        ],
        "Compositionality_II": [],
        "Forgetfulness": [
            {
                "test_queries": [query(f"{CITIZEN[:-3]}, which is not Norway, is", ["Chile"])],
                "test_condition": "OR",
                "condition_queries": [],
            }
        ],
    },
    {
        "example_type": "recent",
        "edit": {
            "prompt": "The name of the head of government of Ulm is Odo Klein.",
            "subject_id": "Q3",
            "relation": "HEAD_OF_GOVERNMENT",
            "target_id": "Q4",
        },
        "Relation_Specificity": [],
        "Forgetfulness": [],
    },
    {
        "example_type": "random",
        "edit": {"prompt": "Ulm twinned with Bern.", "subject_id": "Q3", "relation": "TWIN", "target_id": "Q5"},
    },
]

UNKE: Rows = [
    {
        "id": 4,
        "question": "What is known of the Orrery's last voyage?",
        "para_question": "What do you know about how the Orrery sailed last?",
        "answer": "The Orrery left Cork in 1802. It carried salt and was seen off Porto.",
        "sub_question": ["Where did the Orrery leave from?", "What did it carry?"],
        "sub_answer": ["Cork", "salt"],
    }
]

AKEW: Rows = [
    {
        "case_id": 9,
        "pararel_idx": 3,
        "requested_rewrite": {
            "prompt": "The mother tongue of {} is",
            "relation_id": "P103",
            "target_new": {"str": "English", "id": "Q1860"},
            "target_true": {"str": "French", "id": "Q150"},
            "subject": "Joos Wind",
            "prompt_full": "What is the mother tongue of Joos Wind?",
            "fact_new_uns": "Joos Wind grew up with English songs. He speaks English at home.",
            "unsfact_triplets_GPT": [
                {"prompt": "{} grew up with", "subject": "Joos Wind", "target": "English songs"},
                {"prompt": "At home {} speaks", "subject": "Joos Wind", "target": "English"},
            ],
        },
        "paraphrase_prompts": ["Which language did Joos Wind learn first?", "Joos Wind spoke"],
        "neighborhood_prompts": ["The mother tongue of Odo Klein is"],
    }
]
